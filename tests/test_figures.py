"""Pictures with names of classes in any script."""

import warnings

import pytest

from ppconvmixer import figures

matplotlib = pytest.importorskip("matplotlib")


def drawn(name):
    figure = figures.create(2, 2)
    figure.add_subplot().set_title(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return figures.png(figure)


def characters(font):
    from matplotlib import font_manager, ft2font

    return ft2font.FT2Font(font_manager.findfont(font)).get_charmap().keys()


def test_a_name_is_drawn_by_a_font_that_has_its_characters(monkeypatch, caplog):
    other = "STIXGeneral"  # comes with Matplotlib; for Chinese, no font does
    character = chr(min(characters(other) - characters(figures.OWN)))
    monkeypatch.setattr(figures, "CHINESE", ("a font that is not here",))
    box = drawn(character)
    assert "no font here has all characters of the names drawn; install one, such as" in caplog.text
    caplog.clear()
    monkeypatch.setattr(figures, "CHINESE", ("a font that is not here", other))
    assert drawn(character) != box and not caplog.text
