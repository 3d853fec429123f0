"""Where the demo model lies."""

import pytest

import gemma_surgery.demo_model as demo_model
from gemma_surgery.errors import SurgeryError


def test_an_unknown_form_is_refused_by_name():
    with pytest.raises(SurgeryError, match=r"`bf16` or `4bit`, got `8bit`"):
        demo_model.demo_model_path("8bit")


def test_a_form_that_is_not_installed_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(demo_model, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(SurgeryError, match="no such file"):
        demo_model.demo_model_path("bf16")


def test_a_form_is_a_folder_with_a_config(monkeypatch, tmp_path):
    monkeypatch.setattr(demo_model, "__file__", str(tmp_path / "__init__.py"))
    (tmp_path / "bf16").mkdir()
    (tmp_path / "bf16" / "config.json").write_text("{}")
    assert demo_model.demo_model_path("bf16") == tmp_path / "bf16"
