"""`settings.toml` in the store's folder: who may come in, what each may do, and what one run may use.

Without the file the store is one person's, on one machine: nobody else can reach it, and that person may do everything.
"""

from __future__ import annotations

import functools
import os
import stat
import tomllib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engine.common.errors import ConfigError

FILE = "settings.toml"
Role = Literal["viewer", "runner", "admin"]
Method = Literal["link", "token", "proxy", "oidc"]
SHORTEST_TOKEN = 20


class _Section(BaseModel):
    # TOML knows arrays, not tuples, so types are not strict; unknown keys are refused, as a typo would open a door.
    model_config = ConfigDict(frozen=True, extra="forbid")


class SignIn(_Section):
    """How a person proves who they are. `link` is for one person on this machine; the others for a team."""

    method: Method = "link"
    token: str = Field("", max_length=500)  # method="token": the one secret everybody shares
    proxy_header: str = Field("", pattern=r"^[A-Za-z0-9-]{0,100}$")  # method="proxy": holds the user's name
    proxy_addresses: tuple[str, ...] = ()  # and only requests from here are believed
    allowed: tuple[str, ...] = ()  # names, e-mails, or @domain; empty lets in everyone the proxy vouches for

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self.method == "token" and len(self.token) < SHORTEST_TOKEN:
            raise ValueError(
                f"sign_in.token has {len(self.token)} characters; a shared token needs at least {SHORTEST_TOKEN} "
                "(`python -c 'import secrets; print(secrets.token_urlsafe(32))'` makes one)"
            )
        if self.method == "proxy" and not (self.proxy_header and self.proxy_addresses):
            raise ValueError("sign_in.method='proxy' needs proxy_header and proxy_addresses, the proxy's IP addresses")
        if self.method == "oidc" and not self.allowed:
            raise ValueError("sign_in.method='oidc' needs allowed, a list of e-mails or @domains")
        return self


class Roles(_Section):
    """A viewer sees; a runner starts runs, and stops, renames and deletes their own; an admin may do so with any."""

    default: Role | None = None  # viewer; with a shared token runner
    runner: tuple[str, ...] = ()
    admin: tuple[str, ...] = ()


class Limits(_Section):
    """What one run, or one person, may use; None is no limit of ours."""

    wall_time_s: float | None = Field(24 * 3600.0, gt=0)
    memory_bytes: int | None = Field(None, gt=0)  # of a CPU run's process; None is what was free when it began
    disk_bytes: int | None = Field(4 << 30, gt=0)  # of a run's folder
    points: int | None = Field(50_000_000, gt=0)  # optimizer steps recorded
    queued: int = Field(1_000, gt=0)  # runs waiting, of everybody together
    queued_per_user: int = Field(100, gt=0)  # of one person who is no admin; a race of 6 with 12 seeds is 72
    data_folders: tuple[str, ...] = ()  # besides uploads, whence people who are no admins may take files


class Energy(_Section):
    """What energy costs where you are. None of it is built in: there is no price or grid that holds everywhere."""

    price_per_kwh: float | None = Field(None, gt=0, le=1e6)
    currency: str = Field("", max_length=8)
    gco2_per_kwh: float | None = Field(None, ge=0, le=1e5)  # grams of CO2 per kWh of your grid
    # Lowest and highest power of the processor (of a GPU run: the board) under load. With it, a run without a counter is
    # given an estimate; without it, none.
    tdp_w: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _range_is_one(self) -> Self:
        if self.tdp_w and not 0 < self.tdp_w[0] <= self.tdp_w[1] <= 1e5:
            raise ValueError("energy.tdp_w is two numbers of watts above 0, the smaller one first")
        return self


class Settings(_Section):
    sign_in: SignIn = SignIn()
    energy: Energy = Energy()
    roles: Roles = Roles()
    limits: Limits = Limits()

    @property
    def is_team(self) -> bool:
        """Whether more people than this machine's user may come in."""
        return self.sign_in.method != "link"


def load(root: Path) -> Settings:
    """The settings of the store at `root`; read again when the file changes. Raises ConfigError in one sentence."""
    path = root / FILE
    try:
        status = path.stat()
    except FileNotFoundError:
        return Settings()
    except OSError as error:
        raise ConfigError(
            f"{FILE} cannot be read: {error.strerror}.", fix="Check the file's owner and rights."
        ) from None
    if not stat.S_ISREG(status.st_mode):  # a pipe would hold up every request
        raise ConfigError(f"{FILE} is not an ordinary file.", fix="Remove it, or put one in its place.")
    if os.name == "posix" and stat.S_IMODE(status.st_mode) & 0o077:
        raise ConfigError(
            f"{FILE} can be read or written by others (mode {stat.S_IMODE(status.st_mode):04o}).",
            fix="It decides who may come in: `chmod 600` it.",
        )
    return _parsed(path, status.st_mtime_ns, status.st_size, status.st_ino)


@functools.lru_cache(maxsize=8)
def _parsed(path: Path, _mtime_ns: int, _size: int, _inode: int) -> Settings:
    try:
        return Settings.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(
            f"{FILE} cannot be read: {error.strerror}.", fix="Check the file's owner and rights."
        ) from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{FILE} is not TOML: {error}.", fix="Correct the file, or remove it.") from None
    except ValidationError as error:
        raise _explained(error.errors(include_url=False)[0]) from None


def _explained(first: Any) -> ConfigError:
    """One sentence for the first thing that is wrong. A value may be a secret, so none is repeated."""
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return ConfigError(f"{FILE}: {where} is not a known setting.", fix="The README lists them.")
    words = str(first["ctx"]["error"]) if first["type"] == "value_error" else f"{where}: {first['msg'].lower()}"
    return ConfigError(f"{FILE}: {words}.", fix="Correct the file; the README lists what is allowed.")
