"""Random inputs: texts as nobody would write them, and a target called with so many of them."""

from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

FEW, MANY = 100, 10_000
ODD = "a\u0301\u0300\U0001f415\u200d\u202e\u05db\0 \n\t\r\u2028'\"<unk><eos>n't.\u2581\ufeff\uffff"
TEXT = st.text(max_size=40) | st.text(alphabet=ODD, max_size=40)
WORDS = st.lists(st.sampled_from("a dog runs on the grass cat's n't , . <eos> \U0001f415".split()), max_size=12).map(
    " ".join
)
CAPTION = TEXT | WORDS
SOME = CAPTION.filter(lambda text: text.strip() != "")


def fuzz(target, given_values: dict, cases: int, faults, examples: list[dict] = (), note: str = "") -> None:
    """Calls `target(**values)` so often; it raises an AssertionError, or any other error, for what must not happen."""
    tried = 0

    def counted(**values):
        nonlocal tried
        tried += 1
        target(**values)

    test = given(**given_values)(counted)
    for values in examples:
        test = example(**values)(test)
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    test = settings(max_examples=cases, deadline=None, derandomize=True, database=None, suppress_health_check=checks)(
        test
    )
    failed = True
    try:
        test()
        failed = False
    finally:
        faults.count(f"random {target.__name__.replace('_', ' ')}", tried, tried - failed, note)
    assert tried >= min(cases, FEW) // 2


def bound(target, folder: Path):
    """The target with its first argument, a folder, and under its own name."""

    def call(**values):
        target(folder, **values)

    call.__name__ = target.__name__
    return call
