"""Tests of issue 9 whose fix is not there yet, by the item: they are skipped unless HOSTILE_AWAITED is set."""

ITEMS: dict[str, tuple[str, ...]] = {
    "13": ("test_broker.py::test_a_user_property",),
}


def item_of(node_id: str) -> str | None:
    name = node_id.rpartition("/")[2]
    return next((item for item, tests in ITEMS.items() if name.startswith(tests)), None)
