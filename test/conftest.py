"""For all levels: assertions of the shared modules say what the values were, as those of the tests do."""

import pytest

pytest.register_assert_rewrite(
    "devices", "kv_scenarios", "mappings", "monitoring", "system_requests", "brokers", "clients", "cli", "emqx", "hostile", "release", "wire"
)
