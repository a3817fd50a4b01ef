"""The keys and values of a config file, compared with what ``flags.json`` knows of the flags."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from autotimm.cli import flags
from autotimm.cli.flags import CONFIG, check_value
from autotimm.files.shortage import reason
from autotimm.structures import InputError

_ARGUMENTS = "model.init_args."


def read_yaml(file: str) -> dict[Any, Any]:
    """The content of a config file; empty if it holds nothing.

    Raises:
        InputError: it cannot be read, or holds no settings.
    """
    try:
        content = yaml.safe_load(Path(file).read_bytes())
    except OSError as error:
        raise InputError(f"--{CONFIG} {file}: {reason(error)}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"--{CONFIG} {file}{line}: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = " ".join(str(error).split())
        raise InputError(f"--{CONFIG} {file}: is not a YAML file: {line}") from error
    if not isinstance(content, dict | None):
        raise InputError(f"--{CONFIG} {file}: holds no settings, such as those of --print_config")
    return content or {}


class Config:
    """A config file with checked keys and numbers, except those of the model's class.

    Args:
        file: its name, for messages.
        content: what it holds.
        known: the kind of each flag of the verb.
        sections: the names of the groups of flags, such as ``data``.

    Attributes:
        values: by the names of the flags without dashes, such as ``data.batch_size``.

    Raises:
        InputError: a key that is no setting, or a value that is no number where one has to be.
    """

    def __init__(
        self, file: str, content: Mapping[Any, Any], known: Mapping[str, str], sections: set[str]
    ) -> None:
        self._file, self._known = file, known
        self._sections = sections | {"model", _ARGUMENTS[:-1]}
        self.values: dict[str, Any] = {}
        self._read(content, "")

    def _read(self, section: Mapping[Any, Any], above: str) -> None:
        for key, value in section.items():
            path = f"{above}{key}"
            if isinstance(value, dict) and path in self._sections:
                self._read(value, f"{path}.")
                continue
            if path in self._sections and path != "model" and not _names_a_file(value):
                raise InputError(
                    f"{self._file}: {path} is {value!r}, where its settings should be: write them "
                    "indented below it, one a line"
                )
            if path.startswith("model."):
                pass  # for check_arguments
            elif f"--{path}" not in self._known:
                raise self._no_setting(path, [name[2:] for name in self._known])
            else:
                check_value(f"{self._file}: {path}", value, self._known[f"--{path}"])
            self.values[path] = value

    def check_arguments(self, model: str) -> None:
        """Checks the arguments of the model's class.

        Args:
            model: the name of the class.

        Raises:
            InputError: as for the class; not if the class is not ours.
        """
        known = flags.arguments_of(model)
        if known is None:
            return
        names = [f"{_ARGUMENTS}{name}" for name in known]
        for path, value in self.values.items():
            if not path.startswith("model.") or path in ("model.class_path", "model.dict_kwargs"):
                continue
            name = path.removeprefix(_ARGUMENTS).removeprefix("model.")
            if name not in known:
                raise self._no_setting(path, names)
            check_value(f"{self._file}: {path}", value, known[name])

    def _no_setting(self, path: str, known: list[str]) -> InputError:
        of_model = flags.arguments_of("autotimm.InstanceSegmentor") or {}
        near = flags.suggestion(path, [*known, *(f"{_ARGUMENTS}{name}" for name in of_model)])
        return InputError(f"{self._file}: {path} is no setting{near or '; --print_config has all'}")


def _names_a_file(value: Any) -> bool:
    return value is None or str(value).endswith((".yaml", ".yml", ".json"))
