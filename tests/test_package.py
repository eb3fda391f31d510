"""What a user meets before any work is done: the wheel, the imports, the command's first words."""

import re
import resource
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*arguments, cwd=None):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, timeout=120)


def seconds(*arguments, repeats=3):
    """The processor time of the quickest of some runs, which a busy machine disturbs less than the wall clock."""
    times = []
    for _ in range(repeats):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = run(*arguments)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert result.returncode == 0, result.stderr
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def test_import_takes_under_half_a_second_more_than_an_empty_interpreter():
    assert seconds("-c", "import unicorn_hf") - seconds("-c", "pass") < 0.5


def test_help_takes_under_a_second_more_than_an_empty_interpreter():
    assert seconds("-m", "unicorn_hf", "--help") - seconds("-c", "pass") < 1.0


def test_import_brings_no_heavy_library():
    code = (
        "import unicorn_hf, sys; print([m for m in ('torch', 'transformers', 'datasets', 'numpy') if m in sys.modules])"
    )
    assert run("-c", code).stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["AutoProcessor", "CLIPVisionModelWithProjection", "LlamaForCausalLM", "Trainer"])
def test_any_class_of_transformers_may_be_imported_before_the_model(name):
    code = f"from transformers import {name}; import unicorn_hf.modeling; from transformers import AutoConfig; "
    result = run("-c", code + "print(type(AutoConfig.for_model('unicorn')).__name__)")
    assert result.stdout == "UnicornConfig\n", result.stderr


def test_every_public_name_can_be_imported():
    import unicorn_hf

    for name in unicorn_hf.__all__:
        assert getattr(unicorn_hf, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = unicorn_hf.nonsense


def test_the_command_and_the_module_print_the_same_help():
    module = run("-m", "unicorn_hf", "--help").stdout
    command = subprocess.run(
        [Path(sys.executable).with_name("unicorn-hf"), "--help"], capture_output=True, text=True, timeout=60
    ).stdout
    assert command.split("Options")[1] == module.split("Options")[1]
    assert "demo" in command


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    # No isolation: the build backend that is installed here is the one that the metadata ask for.
    built = run("-m", "build", "--sdist", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT))
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(archives):
    (path,) = archives.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def metadata(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith("METADATA"))
    return wheel.read(name).decode()


def test_the_wheel_holds_every_module_and_data_file_of_the_tree(wheel):
    expected = set()
    for folder, package in (
        ("unicorn_hf", "unicorn_hf"),
        ("modeling", "unicorn_hf/modeling"),
        ("dataset_scripts", "unicorn_hf/dataset_scripts"),
        ("recipes", "unicorn_hf/recipes"),
    ):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                expected.add(f"{package}/{path.relative_to(ROOT / folder)}")
    missing = expected - set(wheel.namelist())
    assert not missing
    for name in ("clip/open_clip_model.safetensors", "clip/open_clip_config.json", "clip/tokenizer.json"):
        assert f"unicorn_hf/sandbox/{name}" in wheel.namelist()


def test_the_wheel_names_the_command_and_the_extras(wheel, metadata):
    (entry_points,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    for extra in ("train", "synthesis", "clip", "eval", "demo", "dev"):
        assert f"Provides-Extra: {extra}\n" in metadata
    assert re.search(r"^License(-Expression)?: Apache-2.0$", metadata, re.MULTILINE)
    assert "unicorn-hf = unicorn_hf.cli:main" in wheel.read(entry_points).decode()


def test_the_metadata_say_whose_the_package_is_and_where(metadata):
    assert re.search(r"^Author: \S", metadata, re.MULTILINE)
    for name in ("Documentation", "Changelog", "Issues"):
        assert f"Project-URL: {name}, https://" in metadata


def test_the_readme_has_no_link_that_breaks_on_the_package_index(metadata):
    readme = metadata.partition("\n\n")[2]
    targets = re.findall(r"\]\(([^)\s]+)", readme) + re.findall(r'(?:src|href)="([^"]+)', readme)
    assert targets
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []


def test_the_links_into_the_repository_lead_to_files(metadata):
    """A renamed page breaks them without a word."""
    (repository,) = re.findall(
        r"^(?:Home-page|Project-URL: Homepage), ?(\S+)|^Home-page: (\S+)", metadata, re.MULTILINE
    )
    repository = "".join(repository)
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "setup.cfg", *(ROOT / ".github").rglob("*.yml")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in pages)
    raw = repository.replace("https://github.com", "https://raw.githubusercontent.com")
    inside = re.findall(rf"{repository}/(?:blob|tree)/main/([^\s)#\"]+)|{raw}/main/([^\s)#\"]+)", text)
    assert inside
    assert [path for pair in inside for path in pair if path and not (ROOT / path).exists()] == []


def test_the_source_archive_holds_the_documentation_and_the_citation(archives):
    (path,) = archives.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    expected = {str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*") if page.is_file()}
    assert expected | {"CITATION.cff", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "mkdocs.yml"} <= names


def test_the_shipped_clip_is_under_two_megabytes():
    files = list((ROOT / "unicorn_hf" / "sandbox" / "clip").iterdir())
    assert 0 < sum(path.stat().st_size for path in files) < 2e6


def test_type_checkers_see_every_public_name():
    import unicorn_hf

    stub = (ROOT / "unicorn_hf" / "__init__.pyi").read_text(encoding="utf-8")
    assert {*re.findall(r"(\w+) as \1\b", stub), "__version__"} == set(unicorn_hf.__all__)
