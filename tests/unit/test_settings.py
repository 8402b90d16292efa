"Settings as people write them: empty, with a tilde, in the wrong encoding, in a container with less than a whole machine."

import os
from pathlib import Path

import pytest
from commands import refused

from lados.cli.main import at_home
from lados.core import Settings, check_env_file, cpu_quota, settings, usable_cores


@pytest.fixture
def env(tmp_path, monkeypatch):
    "Settings from variables, and from a file `.env` in an empty folder."
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HOME", "/home/ada")

    def read(dotenv=None, **variables):
        if dotenv is not None:
            (tmp_path / ".env").write_bytes(dotenv)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        settings.cache_clear()
        return settings()

    yield read
    settings.cache_clear()


@pytest.mark.parametrize("blank", ["", "  "])
@pytest.mark.parametrize("name", [n.upper() for n in Settings.model_fields])
def test_an_empty_variable_is_an_unset_one(env, name, blank):
    field = name.lower()
    assert getattr(env(**{name: blank}), field) == Settings.model_fields[field].default
    assert getattr(env(f"{name}={blank}\n".encode()), field) == Settings.model_fields[field].default


def test_what_is_empty_in_the_environment_leaves_the_file_alone(env):
    assert env(b"API_KEY=secret\n", API_KEY="").api_key == "secret"


@pytest.mark.parametrize("written", ["~/l", "$HOME/l", "${HOME}/l", '"~/l"', "'$HOME/l'"])
@pytest.mark.parametrize("name", ["LADOS_HOME", "LADOS_RUNS", "LADOS_DATA", "LADOS_BATCHES", "MODEL_PATH"])
def test_home_is_meant_in_every_path(env, name, written):
    assert getattr(env(**{name: written}), name.lower()) == Path("/home/ada/l")
    os.environ.pop(name)
    assert getattr(env(f"{name}={written}\n".encode()), name.lower()) == Path("/home/ada/l")


def test_home_is_meant_in_a_list_of_sources(env):
    assert env(LADOS_SOURCES="~/a, $HOME/b,s3://bucket/flights").lados_sources == "/home/ada/a,/home/ada/b,s3://bucket/flights"


@pytest.mark.parametrize("path", ["$NO_SUCH_PLACE/x", "~no-such-person/x"])
def test_a_place_that_is_not_known_is_an_error_not_a_folder(env, path):
    with refused("environment-invalid", "LADOS_HOME"):
        env(LADOS_HOME=path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_file_in_utf_16_is_told(env, encoding):
    with refused("environment-invalid", "UTF-16") as e:
        env("JOB_CHUNK=5\n".encode(encoding))
    assert "UTF-8" in e.value.remedy


def test_a_file_in_latin_1_names_the_line(env):
    with refused("environment-invalid", "line 2"):
        env(b"JOB_CHUNK=5\nLADOS_DATA=donn\xe9es\n")


def test_a_byte_order_mark_is_no_part_of_a_name(env):
    assert env(b"\xef\xbb\xbfJOB_CHUNK=5\r\n").job_chunk == 5


def test_a_folder_called_env_is_no_file_of_settings(tmp_path):
    check_env_file(tmp_path)


def files(root, contents):
    for name, text in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(("own", "contents", "cores"), [
    ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
    ("0::/\n", {"cpu.max": "max 100000\n"}, None),
    ("0::/\n", {}, None),
    ("0::/a/b\n", {"a/cpu.max": "150000 100000\n", "a/b/cpu.max": "max 100000\n"}, 1.5),
    ("0::/a/b\n", {"a/cpu.max": "400000 100000\n", "a/b/cpu.max": "50000 100000\n"}, 0.5),
    ("0::/../of-the-host\n", {"cpu.max": "300000 100000\n"}, 3),
    ("4:cpu,cpuacct:/docker/7f\n0::/\n", {"cpu,cpuacct/docker/7f/cpu.cfs_quota_us": "250000\n", "cpu,cpuacct/docker/7f/cpu.cfs_period_us": "100000\n"}, 2.5),
    ("4:cpu,cpuacct:/docker/7f\n", {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "50000\n"}, 2),
    ("4:cpuset:/\n3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
])
def test_the_quota_of_control_groups(tmp_path, own, contents, cores):
    files(tmp_path, {**contents, "own": own})
    assert cpu_quota(tmp_path, tmp_path / "own") == cores


@pytest.mark.parametrize(("quota", "threads"), [("max", 64), ("150000", 2), ("50000", 1), ("200000", 2), ("9900000", 64)])
def test_threads_are_the_quota_rounded_up(tmp_path, monkeypatch, quota, threads):
    files(tmp_path, {"cpu.max": f"{quota} 100000\n", "own": "0::/\n"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    assert usable_cores(tmp_path, tmp_path / "own") == threads


def test_a_tilde_that_no_shell_fills_in():
    home = str(Path.home())
    assert at_home(["--out=~/a.csv", "--set=data=~/d", "--out=~", "~x", "--name=a~/b"]) == [
        f"--out={home}/a.csv", f"--set=data={home}/d", f"--out={home}", "~x", "--name=a~/b"]
