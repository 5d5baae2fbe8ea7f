// Keeps each part of the page that is marked data-live up to date, until it comes back without the mark.

const PAUSE = 1000; // milliseconds between two looks
const toggle = document.getElementById("live");
let live = true;

async function look() {
  const response = await fetch(location.href);
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  for (const part of document.querySelectorAll("[data-live]")) {
    const now = page.getElementById(part.id);
    if (now && now.innerHTML !== part.innerHTML) part.innerHTML = now.innerHTML;
    if (now && !("live" in now.dataset)) part.removeAttribute("data-live");
  }
}

async function keepLooking() {
  const wanted = document.querySelector("[data-live]");
  toggle.hidden = !wanted;
  if (!wanted) return;
  if (live && !document.hidden) await look().catch(() => {}); // the shop is away: it may come back
  setTimeout(keepLooking, PAUSE);
}

toggle.addEventListener("click", () => {
  live = !live;
  toggle.textContent = live ? "Pause updates" : "Resume updates";
});
keepLooking();
