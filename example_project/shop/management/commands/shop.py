from django.core.management import BaseCommand, call_command

from shop.models import Event
from shop.samples import create_events


class Command(BaseCommand):
    help = "Sets up the shop to try it by hand: makes its database and fills it with events."

    def handle(self, **_: object) -> None:
        call_command("migrate", verbosity=0)
        if not Event.objects.exists():
            create_events(capacity=50)
        self.stdout.write("The shop is ready: start it with 'manage.py runserver' and open http://127.0.0.1:8000/")
