"""The folder of a run."""

from lightning_landscape.reporting.folder import remove_empty


def test_only_empty_folders_go_and_none_above_the_top(tmp_path):
    for name in ("empty", "full"):
        (tmp_path / "user" / name / "landscape" / "store").mkdir(parents=True)
    (tmp_path / "user" / "full" / "landscape" / "other.txt").touch()
    for name in ("empty", "full"):
        remove_empty(tmp_path / "user" / name / "landscape" / "store", tmp_path / "user" / name)
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == [
        "user",
        "user/full",
        "user/full/landscape",
        "user/full/landscape/other.txt",
    ]
    remove_empty(tmp_path / "user" / "nowhere", tmp_path / "user")
    assert (tmp_path / "user").is_dir()
