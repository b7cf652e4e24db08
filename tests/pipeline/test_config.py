"""The configuration: files, --set, errors, and what is generated from the schema."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import jsonschema
import pydantic
import pytest
import yaml

from pipeline.config import Config, ConfigError, load_config, model_directory, result_hash
from pipeline.keys import SCHEMA_FILE, json_schema, keys, markdown_table, nearest
from pipeline.overrides import parse_set, read_file


def written(folder: Path, text: str) -> Path:
    file = folder / "mine.yaml"
    file.write_text(text)
    return file


def problem(file: Path | None = None, *sets: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(file, sets)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_need_no_file():
    """Without a file and without overrides the configuration is the schema's defaults."""
    assert load_config() == Config()


def test_default_file_says_the_defaults(root: Path):
    """configs/cpu.yaml has every key but the service's, each with the value that the schema has as its default."""
    data = yaml.safe_load((root / "configs/cpu.yaml").read_text())
    assert load_config(root / "configs/cpu.yaml") == Config()
    known = {key.name for key in keys().values() if not key.is_section}
    assert leaves(data) == {name for name in known if not name.startswith("service.")}


def leaves(part: dict, prefix: str = "") -> set[str]:
    """The names of all keys of a file that are no sections, as pipeline.keys has them."""
    found = set()
    for name, value in part.items():
        dotted = f"{prefix}{name}"
        if isinstance(value, dict):
            found |= leaves(value, f"{dotted}.")
            continue
        found.add(dotted)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            found |= leaves(value[0], f"{dotted}[].")
    return found


def test_service_file_has_every_key_of_the_service(root: Path):
    """configs/service.yaml has them all; but for its example of folders and routes, it says the defaults."""
    data = yaml.safe_load((root / "configs/service.yaml").read_text())
    assert leaves(data) == {k.name for k in keys().values() if k.name.startswith("service.") and not k.is_section}
    service = load_config(root / "configs/service.yaml").service
    assert service.model_copy(update={"watch": (), "routes": ()}) == Config().service


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "  - path: /a\n    pol_s: 3\n",
            "line 4: unknown key service.watch[0].pol_s; did you mean service.watch[].poll_s?",
        ),
        ("  - path: a\n", "line 3: service.watch[0].path: must be an absolute path without .."),
        ("  - poll_s: a\n", "service.watch[0].path is missing; it takes text"),
        ("  - path: /a\n  - path: /b\n    poll_s: a\n", 'line 5: service.watch[1].poll_s is "a", but takes a number'),
    ],
)
def test_keys_in_lists_of_sections_are_named_with_their_line(tmp_path: Path, text: str, said: str):
    """The entry counts from 0, as in JSON."""
    assert said in problem(written(tmp_path, f"service:\n  watch:\n{text}"))


@pytest.mark.parametrize("name", ["gpu", "multi-gpu", "frozen-section"])
def test_other_files_are_good_and_name_only_what_differs(root: Path, name: str) -> None:
    """Each configuration for GPUs loads, asks for a GPU, and is not the default."""
    config = load_config(root / f"configs/{name}.yaml")
    assert config.inference.engine == "gpu" and config != Config()


def test_precision_is_refused_where_the_engine_has_only_one() -> None:
    """The engine on the CPU computes in float32: who asks for fp16 there is told."""
    with pytest.raises(ConfigError, match="precision is fp16, but the engine onnx computes in fp32"):
        load_config(None, ["inference.precision=fp16"])


def test_default_file_marks_what_changes_results(root: Path):
    """The (R) marks of configs/cpu.yaml are the keys that result_hash depends on."""
    marked, path = set(), []
    for line in (root / "configs/cpu.yaml").read_text().splitlines():
        if line.startswith("#") or ":" not in line:
            continue
        depth = (len(line) - len(line.lstrip())) // 2
        path = [*path[:depth], line.split(":")[0].strip()]
        if "# (R)" in line:
            marked.add(".".join(path))
    assert marked == {key.name for key in keys().values() if key.changes_results}


def test_file_names_only_what_it_changes(tmp_path: Path):
    """Values that a file does not name keep their defaults, also within a section."""
    config = load_config(written(tmp_path, "batcher:\n  max_delay_ms:\n    urgent: 5\nreader:\n  workers: 3\n"))
    assert config.batcher.max_delay_ms.urgent == 5
    assert config.batcher.max_delay_ms.routine == 200
    assert config.reader.workers == 3
    assert config.slides == Config().slides


@pytest.mark.parametrize("text", ["", "# nothing\n", "slides:\n  # mpp: 0.5\n", "---\n"])
def test_empty_files_and_sections_are_defaults(tmp_path: Path, text: str):
    """A file or a section with nothing but comments changes nothing."""
    assert load_config(written(tmp_path, text)) == Config()


def test_set_wins_over_file_and_later_over_earlier(tmp_path: Path):
    """--set is stronger than the file, and the last one counts."""
    file = written(tmp_path, "reader:\n  workers: 3\n")
    assert load_config(file, ["reader.workers=4", "reader.workers=5"]).reader.workers == 5


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("slides.mpp=0.5", "slides.mpp", 0.5),
        ("slides.mpp=5e-1", "slides.mpp", 0.5),
        ("slides.mpp=1", "slides.mpp", 1.0),
        ("slides.mpp=null", "slides.mpp", None),
        ("log.file=false", "log.file", False),
        ("reader.workers=auto", "reader.workers", "auto"),
        ("model=/some where/a#b: c=d", "model", "/some where/a#b: c=d"),
        ('model="1"', "model", "1"),
        ("results.formats=[csv, parquet]", "results.formats", ("csv", "parquet")),
        ("results.formats=csv,parquet", "results.formats", ("csv", "parquet")),
        ("results.formats=[]", "results.formats", ()),
        ("batcher.urgent=*frozen*", "batcher.urgent", ("*frozen*",)),
        ("batcher.max_delay_ms={urgent: 1, routine: 2}", "batcher.max_delay_ms.routine", 2.0),
        (" slides.ahead = 2", "slides.ahead", 2),
    ],
)
def test_set_values(text: str, key: str, value: object):
    """--set takes numbers, words, lists and sections as YAML does, and plain text without quotes."""
    config = load_config(None, [text])
    found: object = config
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "guess"),
    [
        ("reader.workrs=3", "reader.workers"),
        ("mpp=0.5", "slides.mpp"),
        ("slide.mpp=0.5", "slides.mpp"),
        ("SLIDES.MPP=0.5", "slides.mpp"),
        ("readers.workers=1", "reader.workers"),
        ("batcher.max_delay_ms.urgnt=1", "batcher.max_delay_ms.urgent"),
        ("resuls={}", "results"),
    ],
)
def test_unknown_key_names_the_nearest(text: str, guess: str):
    """An unknown key is refused with the full name that was most likely meant."""
    assert problem(None, text).endswith(f"did you mean {guess}?")


def test_unknown_key_without_likeness_names_no_key():
    """A key like none of ours gets no guess, but the place where all keys are listed."""
    assert "docs/configuration.md" in problem(None, "quaternion=1")
    assert nearest("quaternion") is None


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("slides.mpp=abc", ["slides.mpp", '"abc"', "a number from 0.05 to 20 or null"]),
        ('reader.workers="4"', ["reader.workers", '"4"', "a whole number from 1 to 1024 or auto"]),
        ("reader.workers=0", ["reader.workers", "0", "from 1"]),
        ("reader.workers=1.5", ["reader.workers", "1.5"]),
        ("reader.workers=true", ["reader.workers", "true"]),
        ("log.file=1", ["log.file", "1", "true or false"]),
        ("slides.mpp=.nan", ["slides.mpp", "NaN"]),
        ("slides.mpp=.inf", ["slides.mpp"]),
        ("tissue.method=magic", ["tissue.method", '"magic"', "brightfield"]),
        ("results.formats=csv,xls", ["results.formats", '["csv", "xls"]', "geojson"]),
        ("results.formats=csv,csv", ["results.formats", "twice"]),
        ("reader=3", ["reader", "3", "a section"]),
        ("supervisor.hang_s=1", ["supervisor.hang_s", "at least 3"]),
        ("slides.mpp=" + "x" * 500, ["slides.mpp", "…"]),
    ],
)
def test_wrong_value_is_one_line_with_key_value_and_what_is_allowed(text: str, parts: list[str]):
    """A wrong value is refused in one short line that names the key, the value given, and what is allowed."""
    line = problem(None, text)
    assert all(part in line for part in parts), line
    assert len(line) < 300


@pytest.mark.parametrize("text", ["foo", "=3", "a b=3", ".=1", "a..b=1", "slides.mpp=[", "slides.mpp={a: 1"])
def test_malformed_set_is_refused(text: str):
    """What is not key=value, or not YAML behind the =, is refused and quoted."""
    assert text in problem(None, text)


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        ("reader:\n  workers: 3\n  wrokers: 4\n", 3, "did you mean reader.workers?"),
        ("reader:\n\n  workers: many\n", 3, "reader.workers"),
        ("reader:\n  workers: 3\n\n  workers: 4\n", 4, "given twice"),
        ("reader:\n  workers: 3\nreader:\n  credit: 4\n", 3, "given twice"),
        ("reader: {workers: 3\nslides: 1\n", 2, "not valid YAML"),
        ("reader:\n\tworkers: 3\n", 2, "not valid YAML"),
        ("- reader\n", 1, "section"),
        ("? [a]\n: 1\n", 1, "a plain word"),
        ("results:\n  formats: [csv, no]\n", 2, "results.formats"),
        ("slides:\n  mpp: !!int abc\n", 2, "tag"),
        ("slides: !!python/object:os.system {}\n", 1, "the tag"),
        ("reader:\n  workers: 2020-01-01\n", 2, "2020-01-01"),
        ("model: a\n---\nmodel: b\n", 2, "not valid YAML"),
    ],
)
def test_file_errors_name_file_and_line(tmp_path: Path, text: str, line: int, part: str):
    """What is wrong in a file is told with the file's name and the line."""
    file = written(tmp_path, text)
    message = problem(file)
    assert message.startswith(f"{file}, line {line}")
    assert part in message


def test_several_problems_are_told_together():
    """Every wrong key is named, at most three of them, the rest counted."""
    line = problem(None, "reader.workers=0", "slides.mpp=x", "log.file=3", "nonsense=1", "tissue.overlap=9")
    assert "nonsense" in line
    assert line.endswith("and 2 more")


@pytest.mark.parametrize("kind", ["missing", "folder", "binary", "huge"])
def test_unreadable_files(tmp_path: Path, kind: str):
    """A file that is missing, a folder, not text or absurdly large is refused by its name."""
    file = tmp_path / "mine.yaml"
    match kind:
        case "folder":
            file.mkdir()
        case "binary":
            file.write_bytes(b"\xff\xfe\x00\x01")
        case "huge":
            file.write_bytes(b"#" * (2 << 20))
    assert problem(file).startswith(str(file))


def test_aliases_cannot_exhaust_memory(tmp_path: Path):
    """A file of a few lines whose aliases multiply is refused quickly; one that contains itself too."""
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert "too deeply or too long" in problem(written(tmp_path, "\n".join(lines)))
    assert "too deeply or too long" in problem(written(tmp_path, "a: &a [*a]\n"))


def test_configuration_is_immutable():
    """Nobody changes a configuration after it was checked."""
    config = load_config()
    with pytest.raises(pydantic.ValidationError):
        config.slides.mpp = 1.0


@pytest.mark.parametrize("text", ["slides.mpp=0.5", "tissue.overlap=0.5", "results.heatmap_class=tumour"])
def test_result_hash_changes_with_what_changes_results(text: str):
    """A value that results depend on gives another hash."""
    assert result_hash(load_config(None, [text])) != result_hash(Config())


@pytest.mark.parametrize("text", ["reader.workers=3", "batcher.batch=8", "tissue.workers=2", "log.level=debug"])
def test_result_hash_ignores_speed(text: str):
    """A value that changes only the speed does not make a finished slide stale."""
    assert result_hash(load_config(None, [text])) == result_hash(Config())


def test_result_hash_does_not_depend_on_how_a_number_is_written():
    """1 and 1.0 are the same value."""
    assert result_hash(load_config(None, ["slides.mpp=1"])) == result_hash(load_config(None, ["slides.mpp=1.0"]))


def test_result_hash_is_that_of_before_a_key_was_there():
    """A key that came later leaves finished slides finished, and reviewed ones signed, for as long as nobody sets it."""
    later = [key for key in keys().values() if key.as_before]
    assert later and all(key.changes_results for key in later)
    first = {
        "slides.mpp": None, "slides.source": "auto", "slides.shrink": "exact", "slides.overview_px": 2048,
        "tissue.method": "auto", "tissue.min_fraction": 0.1, "tissue.min_area_mm2": 0.01, "tissue.max_hole_mm2": 0.01,
        "tissue.overlap": 0.0, "inference.engine": "onnx", "inference.precision": "auto", "results.heatmap_class": None,
    }  # fmt: skip
    text = json.dumps(first, sort_keys=True, separators=(",", ":"))
    assert result_hash(Config()) == hashlib.sha256(text.encode()).hexdigest()
    assert result_hash(load_config(None, ["inference.patch_px=96"])) != result_hash(Config())


def test_model_directory(root: Path):
    """No model named means the demonstration model of the repository; `~` is the home folder."""
    assert model_directory(Config()) == root / "models" / "demo-tumour"
    assert model_directory(load_config(None, ["model=~/m"])) == Path.home() / "m"


def test_schema_file_is_fresh(root: Path):
    """The JSON Schema for editors is the one that the code gives; `python -m pipeline.keys` writes it."""
    assert json.loads((root / SCHEMA_FILE).read_text()) == json.loads(json_schema())


def test_schema_accepts_the_default_file_and_refuses_unknown_keys(root: Path):
    """An editor with the schema sees the default file as right, and a misspelt key as wrong."""
    schema = json.loads((root / SCHEMA_FILE).read_text())
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(yaml.safe_load((root / "configs/cpu.yaml").read_text()))
    assert list(validator.iter_errors({"reader": {"wrokers": 1}}))
    assert list(validator.iter_errors({"reader": {"workers": "many"}}))


def test_every_key_is_described():
    """Each key says what it is for and what it takes, and each number has its limits."""
    for key in keys().values():
        assert key.description and key.description.endswith("."), key.name
        assert not key.allowed.startswith("a number") or " from " in key.allowed, key.name


def test_documentation_is_in_step(root: Path):
    """The table of docs/configuration.md is the one that the schema gives; `python -m pipeline.keys` writes it."""
    assert markdown_table() in (root / "docs/configuration.md").read_text()


@pytest.mark.parametrize(
    ("text", "value"),
    [("010", "010"), ("1:30", "1:30"), ("0b11", "0b11"), ("0", 0), ("-3", -3), ("1_000", 1000), ("0x1F", 31), ("2.50", 2.5),
     (".5", 0.5), ("1e-3", 1e-3), ("1.5E+3", 1500.0)],
)  # fmt: skip
def test_numbers_are_what_people_mean(tmp_path: Path, text: str, value: object):
    """Not octal nor in base 60, as YAML 1.1 reads 010 and 1:30: those are no numbers, and so refused where one is wanted."""
    file = tmp_path / "a.yaml"
    file.write_text(f"reader: {{workers: {text}}}\n")
    assert read_file(file).data == {"reader": {"workers": value}} == parse_set(f"reader.workers={text}").data


@pytest.mark.parametrize("text", ['"a\\0b"', '"\\ud800"', "[x, 'y', \"\\0\"]"])
def test_text_that_can_be_no_name_is_refused(tmp_path: Path, text: str):
    """As a path it would be a traceback, later."""
    file = tmp_path / "a.yaml"
    file.write_text(f"slides:\n  stage_dir: {text}\n")
    with pytest.raises(ConfigError, match=r"a\.yaml, line 2: .* holds a character that no name may have$"):
        load_config(file)
    with pytest.raises(ConfigError, match="holds a character that no name may have$"):
        load_config(None, [f"slides.stage_dir={text}"])


def test_bytes_that_are_no_text_are_refused():
    """As the command line has them."""
    with pytest.raises(ConfigError, match=r"^--set model: '/a\\udcff' is not UTF-8$"):
        load_config(None, ["model=/a\udcff"])


def test_null_where_the_text_null_is_meant():
    """The engine of that name is told from a key left empty, and how to write it."""
    with pytest.raises(ConfigError, match='as a text, null is written "null"$'):
        load_config(None, ["inference.engine=null"])
    assert load_config(None, ['inference.engine="null"']).inference.engine == "null"
