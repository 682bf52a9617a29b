import math
from collections.abc import Mapping

import pytest

from inference_service.importers.monai.expressions import evaluate
from inference_service.importers.monai.values import Function, Refused, Symbol, Value

ITEMS: dict[str, Value] = {
    "@highres": True,
    "@size": [96, 96, 64],
    "@root": ".",
    "@labels": {"0": "background", "1": "liver"},
    "@parts#0": "first",
    "@network": object(),
}


def value(text: str) -> Value:
    return evaluate(text, ITEMS.__getitem__)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 + 2 * 3 - 4 / 8 // 1 % 5", 7.0),
        ("-2 ** 3", -8),
        ("[1.5] * 3 if @highres else [3.0] * 3", [1.5, 1.5, 1.5]),
        ("'model.pt' if not @highres else 'high.pt'", "high.pt"),
        ("@root + '/models/model.pt'", "./models/model.pt"),
        ("@size[0] // 2", 48),
        ("@size[-1:]", [64]),
        ("list(@size) + [1]", [96, 96, 64, 1]),
        ("len(@size) == 3 and @size[0] > 10", True),
        ("1 < 2 <= 2 != 3", True),
        ("3 in @size or 96 in @size", True),
        ("@labels['1']", "liver"),
        ("len(@labels.keys())", 2),
        ("[int(k) for k in @labels if k != '0']", [1]),
        ("{'a': (1, 2), 'b': None}", {"a": (1, 2), "b": None}),
        ("max(1, 5, 3) + min([4, 2])", 7),
        ("sum(x for x in [1, 2])", 3),
        ("list(range(3))", [0, 1, 2]),
        ("f'{@parts#0}/{1 + 1}'", "first/2"),
        ("'a,b'.split(',')", ["a", "b"]),
        ("os.path.join(@root, 'eval')", "./eval"),
        ("torch.cuda.is_available()", False),
        ("'cuda' if torch.cuda.device_count() > 0 else 'cpu'", "cpu"),
        ("torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')", Symbol("torch.device")),
        ("torch.float32", Symbol("torch.float32")),
        ("np.uint8", Symbol("np.uint8")),
        ("monai.networks.layers.Norm.BATCH", Symbol("monai.networks.layers.Norm.BATCH")),
        ("math.sqrt(16)", 4.0),
        ("np.pi", math.pi),
        ("list(np.array([1, 2])) * 2", [1, 2, 1, 2]),
        ("np.array([[1, 2], [3, 4]])[1][0]", 3),
        ("np.array([96, 64]) // 2 + [1, 2]", [49, 34]),
        ("list(0.5 * np.array([1, 2]) - np.array([1, 1]))", [-0.5, 0.0]),
        ("(np.array([[1, 2], [3, 4]]) * 2).tolist()", [[2, 4], [6, 8]]),
        ("np.array([[1, 2], [3, 4]]) + np.array([[1, 1], [1, 1]])", [[2, 3], [4, 5]]),
        ("torch.tensor([1, 2, 3])[:2] + [1, 1]", [2, 3]),
        ("round(2.567, 1)", 2.6),
        ("@network.to(torch.device('cpu')).eval() is @network", True),
    ],
)
def test_expressions_have_the_values_that_python_gives_them(text: str, expected: Value) -> None:
    assert value(text) == expected


def test_a_lambda_is_kept_and_not_called() -> None:
    found = value("lambda x: x > 0.5")
    assert isinstance(found, Function)
    assert found.source == "lambda x: x > 0.5"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("__import__('os').system('id')", "__import__"),
        ("open('/etc/passwd').read()", "open"),
        ("eval('1')", "eval"),
        ("(lambda: 1)()", "lambda"),
        ("[].__class__.__base__", "__base__"),
        ("'a'.__class__", "__class__"),
        ("'{0.__class__}'.format(1)", "format"),
        ("f'{1:>{99}}'", "format"),
        ("'%1000000d' % 1", "%"),
        ("torch.save('x')", "torch.save"),
        ("torch.load('x')[0]", "only a list"),
        ("os.system('id')", "os.system"),
        ("os", "os"),
        ("scripts.networks.Net()", "scripts.networks.Net"),
        ("getattr(1, 'real')", "getattr"),
        ("[y for x in [[1]] for y in x]", "one variable"),
        ("{**@labels}", "**"),
        ("dict(**@labels)", "**"),
        ("import os", "not an expression"),
        ("x := 1", "not an expression"),
        ("@network.state_dict()", "state_dict"),
        ("str(@network)", "numbers and text"),
        ("1 / 0", "division by zero"),
        ("@size[9]", "list index"),
        ("1 << 200", "operator"),
        ("np.array([[1, 2], [3, 4]]) * np.array([1, 2])", "different shapes"),
        ("torch.tensor([1, 2, 3])[:2] + [1]", "different shapes"),
        ("np.array([True]) + 1", "as numbers"),
        ("np.array(['a']) + 'b'", "as numbers"),
        ("np.array([1]) == np.array([1])", "an array"),
    ],
)
def test_other_python_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(Refused) as refused:
        value(text)
    assert named in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "9 ** 9 ** 9",
        "2 ** 64",
        "((np.array([9]) ** 9) ** 9) ** 9",
        "[0] * 10 ** 9",
        "'a' * 10 ** 9",
        "round(5, -10 ** 9)",
        "list(range(10 ** 9))",
        "[" * 1000 + "]" * 1000,
        "(" * 1900 + ")" * 1900,
        "1 +" * 3000 + "1",
        "[[x for x in range(5000)] for y in range(5000)]",
        "'a'.replace('a', 'b' * 4000).replace('b', 'c' * 4000)",
    ],
)
def test_expressions_are_bounded(text: str) -> None:
    with pytest.raises(Refused):
        value(text)


def test_values_that_double_by_reference_are_bounded() -> None:
    nested: Value = [0]
    for _ in range(64):
        nested = [nested, nested]
    with pytest.raises(Refused, match="items"):
        evaluate("[@a]", lambda _reference: nested)


def test_a_call_of_a_class_of_monai_is_told_and_not_made() -> None:
    seen: list[object] = []
    network = object()

    def construct(name: str, arguments: Mapping[str, Value]) -> Value:
        seen.extend((name, arguments))
        return network

    assert evaluate("monai.networks.nets.UNet(channels=[4] * @n).to('cpu')", lambda _: 2, construct) is network
    assert seen == ["monai.networks.nets.UNet", {"channels": [4, 4]}]
    with pytest.raises(Refused, match=r"monai\.networks\.nets\.UNet"):
        value("monai.networks.nets.UNet(channels=[4])")


def test_a_reference_is_passed_on_as_it_is_written() -> None:
    seen: list[str] = []

    def resolve(reference: str) -> Value:
        seen.append(reference)
        return 1

    assert evaluate("@a#b#0 + @##c + @x::y", resolve) == 3
    assert seen == ["@a#b#0", "@##c", "@x::y"]
