"""Attach lych_checkpoint to a Celery app: steps, control commands, tasks, beat entry."""

from __future__ import annotations

import logging
import sys
from typing import Any

from celery import Celery, signals
from celery.schedules import crontab

from lych_checkpoint import body, eras, gate, hosts, rebirth, tasks
from lych_checkpoint.eras import Present
from lych_checkpoint.errors import CheckpointError, SettingError
from lych_checkpoint.federation import Federation
from lych_checkpoint.lease.connection import Store
from lych_checkpoint.records import canonical, digest
from lych_checkpoint.settings import Settings
from lych_checkpoint.stamping import Stamper
from lych_checkpoint.vault.quarantine import Quarantine
from lych_checkpoint.worker import consuming, control, steps

logger = logging.getLogger(__name__)

__all__ = ["Plugin", "install"]


class Plugin:
    """What hangs on the app as ``app.lych``; made by `install`."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._settings: Settings | None = None
        self._fingerprint: dict[str, str] | None = None
        self.boot = ""
        self.stamper = Stamper(self.federation)

    @property
    def settings(self) -> Settings:
        """All settings; read once.

        Raises:
            SettingError: one is missing, unknown or bad.
        """
        if self._settings is None:
            self._settings = Settings.load(_conf(self._app))
        return self._settings

    def federation(self) -> Federation:
        """Open the federation for one piece of work."""
        return Federation(self.settings)

    def take_fingerprint(self) -> None:
        """Note the commit of every repository, as near to the import of the code as the settings allow."""
        if self._fingerprint is None:
            try:
                settings = self.settings
                self._fingerprint = body.fingerprint(settings.root, settings.core, settings.extensions)
            except CheckpointError as error:
                self._settings = None
                logger.debug("No fingerprint yet: %s", error)

    def loaded(self) -> str:
        """Return the signature of the code this process imported."""
        return digest(canonical(self._fingerprint or {}))

    def on_disk(self) -> str:
        """Return the signature of the code that is on disk now; empty when it cannot be read."""
        try:
            settings = self.settings
            return digest(canonical(body.fingerprint(settings.root, settings.core, settings.extensions)))
        except CheckpointError:
            return ""

    def pass_gate(self) -> tuple[int, Present]:
        """Run the gate for this worker, by LYCH_REBIRTH; returns the generation it saw and which messages may run."""
        self.take_fingerprint()
        federation = self.federation()
        report = rebirth.pass_gate(federation, self._fingerprint)
        return report.generation, gate.present(federation, report.restored)

    def admission(self) -> tuple[str, Quarantine] | None:
        """Return the header by which messages are told apart, and where some are put; None if all are to run."""
        federation = self.federation()
        if federation.settings.queue_policy == "keep":
            return None
        return eras.header(federation.uuid), federation.vault.quarantine

    def open_store(self) -> Store:
        """Return a client for this federation's Redis."""
        return self.federation().store()

    def answer_restore(self, store: Store) -> None:
        """Tell a restore on another host whether this one has all commits, or can see the vault's bundles."""
        hosts.answer(store, self.settings.root, self.federation().vault)

    def check_generation(self, era: int) -> None:
        """Raise `GateUnsure` or `Away` when a restore has ended the ``era``, or that cannot be known."""
        gate.check_generation(self.federation(), era)

    def doubt_of(self, era: int) -> str:
        """Return what `check_generation` raises, in words; empty if it passes."""
        try:
            self.check_generation(era)
        except CheckpointError as error:
            return str(error)
        return ""

    def is_exempt(self, task: str) -> bool:
        """Return whether the task declares ``checkpoint_exempt = True``."""
        return bool(getattr(self._app.tasks.get(task), "checkpoint_exempt", False))


def install(app: Celery) -> Plugin:
    """Attach the plugin; call it where the app is made, before a worker starts. Safe to call twice.

    Settings are read when they are needed, so that `app.config_from_object` may come before or after.
    """
    existing: Plugin | None = getattr(app, "lych", None)
    if existing is not None:
        return existing
    plugin = Plugin(app)
    app.lych = plugin  # type: ignore[attr-defined]
    app.steps["worker"] |= {steps.Gate, steps.Membership}
    app.steps["consumer"].add(consuming.Consuming)
    tasks.register(app, plugin)
    app.on_after_configure.connect(_after_configure, weak=False)
    signals.before_task_publish.connect(plugin.stamper.on_publish, weak=False)
    signals.beat_init.connect(_check_for_beat(plugin), weak=False)
    logger.debug("Control command %s is answered", control.BELL)
    if app.configured:  # type: ignore[attr-defined]  # missing in the stubs
        plugin.take_fingerprint()
    else:
        _early_fingerprint(plugin)
    return plugin


def _early_fingerprint(plugin: Plugin) -> None:
    """Take the fingerprint if the environment alone says enough: reading `app.conf` here would settle it early."""
    try:
        settings = Settings.load()
        plugin._fingerprint = body.fingerprint(settings.root, settings.core, settings.extensions)  # noqa: SLF001
    except CheckpointError as error:
        logger.debug("No fingerprint before the app is configured: %s", error)


def _after_configure(sender: Celery, **_: Any) -> None:
    plugin: Plugin = sender.lych  # type: ignore[attr-defined]
    try:
        settings = Settings.load(_conf(sender))
    except SettingError as error:
        logger.error("%s", error)  # noqa: TRY400 - the worker's gate and beat end with it; here it only explains
        return
    plugin.take_fingerprint()
    if settings.queue:
        routes = sender.conf.task_routes
        own = {"checkpoint.*": {"queue": settings.queue}}
        sender.conf.task_routes = (own, *(routes if isinstance(routes, list | tuple) else [routes] if routes else []))
    if settings.schedule:
        sender.conf.beat_schedule = {
            "checkpoint.create": {"task": "checkpoint.create", "schedule": read_schedule(settings.schedule),
                                  "kwargs": {"reason": "schedule"}},
            **sender.conf.beat_schedule,
        }


def _check_for_beat(plugin: Plugin) -> Any:
    def check(**_: Any) -> None:
        try:
            if plugin.settings.schedule:
                read_schedule(plugin.settings.schedule)
        except SettingError as error:
            sys.stderr.write(f"{error}\n")
            raise SystemExit(error.exit_code) from error

    return check


def read_schedule(text: str) -> Any:
    """Read LYCH_SCHEDULE: seconds, or the five fields of a crontab.

    Raises:
        SettingError: it is neither.
    """
    fields = text.split()
    try:
        if len(fields) == 5:
            return crontab.from_string(text)
        seconds = float(text)
        if seconds > 0:
            return seconds
    except ValueError as error:
        raise SettingError(f"{text!r} is neither seconds nor a crontab: {error}", "LYCH_SCHEDULE") from error
    raise SettingError(f"{text!r} is neither seconds nor five crontab fields", "LYCH_SCHEDULE", "set LYCH_SCHEDULE")


def _conf(app: Celery) -> dict[str, Any]:
    """Return what of the app's configuration concerns us: `lych_*` in lower case, and the broker's URL."""
    found: dict[str, Any] = {"broker_url": app.conf.broker_url}
    maps: list[Any] = list(app.conf.maps or [])
    for mapping in reversed(maps):
        for key in mapping:
            name = str(key).lower().removeprefix((app.conf.prefix or "").lower())
            if name.startswith("lych_"):
                found[name] = mapping[key]
    return found
