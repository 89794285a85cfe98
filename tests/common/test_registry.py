"""Registries: the nearest name, both owners, and one broken part that does not hide the rest."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from lavislite.common import registry as registry_module
from lavislite.common.registry import Registry, UnknownNameError, did_you_mean


@pytest.fixture
def things() -> Registry:
    return Registry(
        "thing", "things", {"counter": "collections:Counter", "broken": "no_such_module_here:X"}
    )


def test_builtins_are_imported_on_first_use(things: Registry) -> None:
    from collections import Counter

    assert things.get("counter") is Counter
    assert things.names("c*") == ["counter"]


def test_an_unknown_name_offers_the_nearest_and_lists_the_rest(things: Registry) -> None:
    with pytest.raises(UnknownNameError) as caught:
        things.get("countre")
    assert str(caught.value) == (
        "Unknown thing 'countre'. Did you mean 'counter'? Known: broken, counter. "
        "Defined in your own code? Pass --user-dir."
    )
    with pytest.raises(LookupError):
        things.get("zzz")


def test_a_broken_builtin_names_its_cause_and_hides_nothing(things: Registry) -> None:
    assert things.names() == ["broken", "counter"]
    with pytest.raises(ImportError, match=r"thing 'broken' .*no_such_module_here"):
        things.get("broken")


def test_a_taken_name_shows_both_owners(things: Registry) -> None:
    with pytest.raises(ValueError, match=r"collections:Counter.*Mine needs another name"):

        @things.register("counter")
        class Mine:
            pass


def test_registering_again_is_fine(things: Registry) -> None:
    @things.register("mine")
    class Mine:
        pass

    assert things.register("mine")(Mine) is Mine
    assert things.get("mine") is Mine


def test_installed_plugins_are_found_and_failing_ones_named(
    things: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("out of order")

    points = [
        SimpleNamespace(name="good", value="pkg:good", load=lambda: "a plugin"),
        SimpleNamespace(name="bad", value="pkg:bad", load=fail),
    ]
    monkeypatch.setattr(
        registry_module, "entry_points", lambda group: points if group == "lavislite.things" else []
    )
    assert "good" in things
    assert things.get("good") == "a plugin"
    with pytest.raises(ImportError, match=r"'bad' .*pkg:bad.*out of order"):
        things.get("bad")


def test_nearest_name() -> None:
    assert did_you_mean("blip2-t5", ["blip2_t5", "blip2"]) == " Did you mean 'blip2_t5'?"
    assert did_you_mean("q", ["blip2"]) == ""


def test_lavis_spellings_are_the_same_methods() -> None:
    from lavislite.common import catalog
    from lavislite.common.registry import registry  # type: ignore[attr-defined]

    assert registry is catalog
    assert registry.register_builder == registry.datasets.register


def test_listing_imports_nothing_heavy() -> None:
    code = (
        "import sys, lavislite; lavislite.registry.models.names(); "
        "assert not {'torch', 'timm', 'transformers', 'omegaconf'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
