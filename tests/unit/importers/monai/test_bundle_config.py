import json
from pathlib import Path

import pytest

from inference_service.core.errors import ModelInvalid
from inference_service.importers.monai.bundle_config import BundleConfig
from inference_service.importers.monai.component import Component
from inference_service.importers.monai.config_file import find_line, parse_config


def config(**items: object) -> BundleConfig:
    return BundleConfig(json.dumps(items, indent=2).encode(), "inference.json")


def test_references_lead_to_items_and_into_components() -> None:
    items = config(
        size=[96, 96],
        first="@size#0",
        net={"_target_": "UNet", "channels": "@size", "nested": {"a": 1}},
        channels="@net#channels",
        deep="@net#nested#a",
        double="$@first * 2",
        new="@size::1",
        nothing=None,
        of_nothing="@nothing",
    )
    values = [items.resolve(key) for key in ("first", "channels", "deep", "double", "new", "of_nothing")]
    assert values == [96, [96, 96], 1, 192, 96, None]


def test_relative_references_go_up_from_the_item_that_refers() -> None:
    items = config(outer={"a": 1, "inner": {"b": 2, "here": "@#b", "above": "@##a", "sum": "$@#b + @##a"}})
    assert items.resolve("outer") == {"a": 1, "inner": {"b": 2, "here": 2, "above": 1, "sum": 3}}


def test_macros_copy_what_is_written(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "other.json").write_text('{"x": {"y": [7]}}')
    content = b'{"a": "$1 + 1", "b": "%a", "c": "%configs/other.json#x"}'
    items = BundleConfig(content, "inference.json", tmp_path)
    assert (items.resolve("b"), items.resolve("c")) == (2, {"y": [7]})


def test_disabled_components_are_left_out_of_lists() -> None:
    items = config(
        off=True,
        transforms=[
            {"_target_": "A", "_disabled_": True},
            {"_target_": "B", "_disabled_": "$not @off"},
            {"_target_": "C", "_disabled_": "@off"},
        ],
    )
    found = items.resolve("transforms")
    assert isinstance(found, list)
    assert [each.name for each in found if isinstance(each, Component)] == ["B"]


@pytest.mark.parametrize(
    ("items", "key", "named"),
    [
        ({"a": "@a"}, "a", "itself"),
        ({"a": "@b", "b": "$[@a]"}, "a", "itself"),
        ({"a": "@missing"}, "a", "@missing"),
        ({"a": ["%a", "%a"]}, "a", "deep"),
        ({"a": "%missing"}, "a", "no item"),
        ({"a": "%../secret.json#x"}, "a", "not a file of the bundle"),
        ({"a": "%/etc/secret.json#x"}, "a", "not a file of the bundle"),
        ({"a": "$open('x')"}, "a", "open"),
        ({"a": "@####b", "b": 1}, "a", "above the top level"),
        ({"a": {"_target_": ["x"]}}, "a", "_target_"),
        ({"a": {"_target_": "x", "_mode_": "callable"}}, "a", "_mode_"),
        ({f"a{n}": f"@a{n + 1}" for n in range(80)} | {"a80": 1}, "a0", "deep"),
    ],
)
def test_what_cannot_be_resolved_is_refused_with_its_key(items: dict[str, object], key: str, named: str) -> None:
    with pytest.raises(ModelInvalid) as refused:
        config(**items).resolve(key)
    assert named in str(refused.value)
    assert "inference.json" in str(refused.value)


def test_macros_that_double_are_bounded() -> None:
    items: dict[str, object] = {f"a{n}": [f"%a{n + 1}", f"%a{n + 1}"] for n in range(40)}
    with pytest.raises(ModelInvalid, match="more than"):
        config(**items, a40=0).resolve("a0")


def test_an_error_names_the_line() -> None:
    content = b'{\n\t"a": 1,\n\t"b": {\n\t\t"c": [0,\n\t\t\t"$bad()"]\n\t}\n}\n'
    items = BundleConfig(content, "inference.json")
    with pytest.raises(ModelInvalid, match="line 5, b#c#1: the function bad"):
        items.resolve("b")


def test_the_line_of_yaml_is_found_too() -> None:
    content = b"a: 1\nb:\n- x\n- c: 3\n"
    assert [find_line(content, parts) for parts in (["a"], ["b", "1", "c"], ["b", "9"], ["z"])] == [1, 4, 2, None]


def test_keys_of_yaml_may_be_numbers() -> None:
    content = b"names:\n  0: background\n  1: liver\nfirst: '@names#1'\nnet: {_target_: UNet, 1: 2}\n"
    items = BundleConfig(content, "inference.yaml")
    assert items.resolve("first") == "liver"
    with pytest.raises(ModelInvalid, match=r"line 5, net: .*must be text"):
        items.resolve("net")


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"{", "x.json"),
        (b"[1]", "x.json"),
        (b"a: [", "x.yaml"),
        (b"!!python/object/apply:os.system ['id']", "x.yaml"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "x.json"),
        (b"\xff\xfe", "x.json"),
        (
            b"a0: &a0 [0, 0]\n" + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (n, n, n - 1, n - 1) for n in range(1, 40)),
            "x.yaml",
        ),
        (
            b"a0: &a0 {k: v}\n"
            + b"".join(b"a%d: &a%d {<<: [%s]}\n" % (n, n, b",".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 12)),
            "x.yaml",
        ),
        (b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}", "x.json"),
        (b"a: " + b"[" * 200_000 + b"]" * 200_000, "x.yaml"),
        (b"a: " + b"{a: " * 100_000 + b"1" + b"}" * 100_000, "x.yaml"),
    ],
    ids=[
        *("json", "list", "yaml", "yaml-object", "deep", "encoding", "yaml-aliases", "yaml-merges", "deep-list"),
        *("yaml-deep-list", "yaml-deep-object"),
    ],
)
def test_a_damaged_or_hostile_config_is_refused(content: bytes, name: str) -> None:
    with pytest.raises(ModelInvalid, match="x"):
        parse_config(content, name)
