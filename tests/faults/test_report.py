"""The page of the faults: each layout's section comes from a run of its own."""

from tests.faults import report
from tests.faults.layouts import ONE, PAIR, TWO


def section(layout, words):
    return f"## Layout {layout.name}\n\n{words}\n\n### By kind of fault\n\n| {words} |\n\n"


def test_a_run_replaces_the_section_of_its_own_layout():
    first = report.page(PAIR, section(PAIR, "old"), "")
    both = report.page(ONE, section(ONE, "other"), first)
    page = report.page(PAIR, section(PAIR, "new"), both)
    assert page == report.HEAD + section(ONE, "other") + section(PAIR, "new") + report.MEANING
    assert report.page(TWO, section(TWO, "more"), page).count("\n## ") == 4


def test_a_page_of_another_form_is_replaced_whole():
    assert report.page(ONE, section(ONE, "new"), "# Faults\n\n## The verdict\n") == (
        report.HEAD + section(ONE, "new") + report.MEANING
    )
