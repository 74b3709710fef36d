"""The README's map is the house as it stands. Run: pytest tests/test_readme.py"""

from dream.utils.runtime import CONFIG_DIR, PROJECT_ROOT

README = (PROJECT_ROOT / "README.md").read_text()


def test_it_is_short():
    assert len(README.splitlines()) <= 250


def test_the_map_names_every_room():
    folder = PROJECT_ROOT / "src" / "dream"
    rooms = {f"{p.name}/" for p in folder.iterdir() if p.is_dir() and p.name != "__pycache__"}
    rooms |= {p.name for p in folder.glob("*.py") if p.name != "__init__.py"}
    assert {room for room in rooms if room not in README} == set()


def test_what_it_tells_people_to_type_exists():
    experiments = [path.stem for path in (CONFIG_DIR / "experiment").glob("*.yaml")]
    assert "quickstart" in experiments
    assert [name for name in experiments if f"experiment={name}" not in README] == []
    for script in ("dream-train", "dream-search"):
        assert f"{script} " in README
        assert (PROJECT_ROOT / "pyproject.toml").read_text().count(f"{script} =") == 1
