from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mfimage.errors import InputError
from tests.function.avro_strategies import schemas_and_values
from tests.function.test_avro import avro, derived, same


@settings(
    max_examples=6000,
    deadline=None,
    derandomize=False,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(schemas_and_values(), st.data())
def test_f(case, data):
    json_schema, value = case
    schema = derived(json_schema)
    good = avro.dumps(value, schema)
    assert same(avro.loads(good, schema), value)
    at = data.draw(st.integers(0, len(good)))
    bad = good[:at] + data.draw(st.binary(max_size=4)) + good[at + data.draw(st.integers(0, 2)) :]
    try:
        found = avro.loads(bad, schema)
    except InputError:
        return
    assert same(avro.loads(avro.dumps(found, schema), schema), found)
