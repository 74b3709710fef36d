"""The wheel carries conf/ and runs anywhere. Run: pytest tests/test_packaging.py"""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import dream

ROOT = Path(__file__).parents[1]


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command, cwd=cwd, env=clean | environment, capture_output=True, text=True, timeout=280, check=False
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    built = run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=ROOT)
    assert built.returncode == 0, built.stderr
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """An empty virtual environment with the wheel. It reads the dependencies, not the checkout, of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = str(folder / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--quiet", "--no-index"]
    installed = run(*pip, str(wheel), cwd=folder)
    assert installed.returncode == 0, installed.stderr
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder


def test_version_stands_in_one_place(wheel):
    assert wheel.name.split("-")[1] == dream.__version__
    assert f'version = "{dream.__version__}"' not in (ROOT / "pyproject.toml").read_text()


@pytest.mark.slow
def test_an_installed_wheel_trains_below_the_current_folder(environment, tmp_path):
    where = run(str(environment / "bin" / "python"), "-c", "import dream; print(dream.__file__)", cwd=tmp_path)
    assert where.stdout.startswith(str(environment)), where.stderr
    done = run(str(environment / "bin" / "dream-train"), "debug=smoke", cwd=tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "logs"]
    assert (tmp_path / "logs" / "latest" / "summary.json").is_file()
    found = run(str(environment / "bin" / "dream-search"), "a config file", "k=1", cwd=tmp_path)
    assert found.returncode == 0, found.stderr[-3000:]


def test_the_wheel_has_every_config_and_the_marker_for_type_checkers(wheel):
    import zipfile

    names = zipfile.ZipFile(wheel).namelist()
    configs = {f"dream/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert configs <= set(names)
    assert "dream/py.typed" in names
    assert not [name for name in names if "test" in name]
