"""What a tenant is set to: the run that serves, named scenarios, experiments."""

from hashlib import sha256
from time import time
from typing import Any

from sqlalchemy import Connection, delete, select, update

from allrec.errors import InputError
from allrec.serving.database import Database
from allrec.serving.records import (
    Experiment,
    ModelVersion,
    check_fields,
    check_flag,
    check_number,
    check_tenant,
    check_text,
)
from allrec.serving.schema import NAME_LENGTH, counters, experiments, model_versions, scenarios, tenants


class SettingStore:
    """The part of the store that holds settings."""

    database: Database

    def settings_version(self, tenant: str) -> int:
        """A number that grows with each change of a tenant's model version, scenarios and experiments; 0 at first.

        Where it is the same as before, what was read of these still holds.
        """
        query = select(counters.c.value).where(counters.c.tenant == tenant, counters.c.name == "settings")
        with self.database.read() as connection:
            return connection.execute(query).scalar() or 0

    def _touch(self, connection: Connection, tenant: str) -> None:
        self.database.take_numbers(connection, tenant, "settings", 1)

    def put_tenant(self, tenant: str, *, run: str) -> ModelVersion:
        """Enters a tenant with the run that it serves. Where it serves that run already, nothing changes."""
        check_tenant(tenant)
        insert = self.database.insert(tenants).values(tenant=tenant, created_at=time()).on_conflict_do_nothing()
        with self.database.write() as connection:
            connection.execute(insert)
            self._lock_models(connection, tenant)
            serving = self._serving(connection, tenant)
            return serving if serving and serving.run == run else self._publish(connection, tenant, run)

    def tenant_names(self) -> list[str]:
        """Every tenant of whom anything is stored that is numbered: events, items, model versions, settings."""
        with self.database.read() as connection:
            return list(connection.execute(select(counters.c.tenant).distinct()).scalars())

    def publish(self, tenant: str, *, run: str) -> ModelVersion:
        """Makes a run the one that serves, under the next version. Every process reads the same from ``serving``."""
        check_tenant(tenant)
        with self.database.write() as connection:
            return self._publish(connection, tenant, run)

    def serving(self, tenant: str) -> ModelVersion | None:
        """The version that serves a tenant, None where none was published."""
        with self.database.read() as connection:
            return self._serving(connection, tenant)

    def model_history(self, tenant: str) -> list[ModelVersion]:
        """Every version that was published, oldest first, withdrawn ones included."""
        query = _versions(tenant).order_by(model_versions.c.version)
        with self.database.read() as connection:
            return [ModelVersion(*row) for row in connection.execute(query)]

    def roll_back(self, tenant: str, *, version: int | None = None) -> ModelVersion:
        """Withdraws the version that serves, and returns the one before it, which serves from now on.

        Args:
            version: withdraws this one alone: where another serves by now, nothing changes and that one is returned.
                Processes that find the same version bad then go back by one together.

        Raises:
            InputError: there is no version before it.
        """
        with self.database.write() as connection:
            self._lock_models(connection, tenant)
            standing = self._standing(connection, tenant, 2)
            if standing and version not in (None, standing[0].version):
                return standing[0]
            if len(standing) < 2:
                raise InputError(f"tenant {tenant!r} has no earlier model version to go back to. Publish another run.")
            key = (model_versions.c.tenant == tenant, model_versions.c.version == standing[0].version)
            connection.execute(update(model_versions).where(*key).values(withdrawn_at=time()))
            self._touch(connection, tenant)
        return standing[1]

    def _lock_models(self, connection: Connection, tenant: str) -> None:
        self.database.take_numbers(connection, tenant, "models", 0)

    def _publish(self, connection: Connection, tenant: str, run: str) -> ModelVersion:
        check_text(run, "run", length=4096)
        number = self.database.take_numbers(connection, tenant, "models", 1)
        version = ModelVersion(number, run, published_at=time())
        self._touch(connection, tenant)
        connection.execute(
            model_versions.insert().values(
                tenant=tenant, version=number, run=run, published_at=version.published_at, withdrawn_at=None
            )
        )
        return version

    def _serving(self, connection: Connection, tenant: str) -> ModelVersion | None:
        return next(iter(self._standing(connection, tenant, 1)), None)

    def _standing(self, connection: Connection, tenant: str, limit: int) -> list[ModelVersion]:
        """The latest versions that were not withdrawn, newest first."""
        query = _versions(tenant).where(model_versions.c.withdrawn_at.is_(None))
        rows = connection.execute(query.order_by(model_versions.c.version.desc()).limit(limit))
        return [ModelVersion(*row) for row in rows]

    def put_scenario(self, tenant: str, name: str, *, settings: dict[str, Any]) -> None:
        """Sets a named scenario; every process reads it from the next request on."""
        check_tenant(tenant)
        check_text(name, "scenario", length=NAME_LENGTH)
        check_fields(settings, f"settings of scenario {name!r}")
        insert = self.database.insert(scenarios).values(tenant=tenant, name=name, settings=settings)
        with self.database.write() as connection:
            self._touch(connection, tenant)
            connection.execute(
                insert.on_conflict_do_update(index_elements=["tenant", "name"], set_={"settings": settings})
            )

    def scenarios(self, tenant: str) -> dict[str, dict[str, Any]]:
        """A tenant's scenarios: name to settings."""
        query = select(scenarios.c.name, scenarios.c.settings).where(scenarios.c.tenant == tenant)
        with self.database.read() as connection:
            return {row.name: row.settings for row in connection.execute(query.order_by(scenarios.c.name))}

    def delete_scenario(self, tenant: str, name: str) -> bool:
        """Deletes a scenario, and says whether there was one."""
        statement = delete(scenarios).where(scenarios.c.tenant == tenant, scenarios.c.name == name)
        with self.database.write() as connection:
            self._touch(connection, tenant)
            return bool(connection.execute(statement).rowcount)

    def put_experiment(self, tenant: str, experiment: Experiment) -> None:
        """Sets an experiment; one of the same name is replaced and keeps the time of its start.

        Raises:
            InputError: fewer than two groups, or a share that is not above 0.
        """
        check_tenant(tenant)
        check_experiment(experiment)
        values = {"groups": experiment.groups, "is_running": experiment.is_running}
        created_at = time() if experiment.created_at is None else experiment.created_at
        insert = self.database.insert(experiments).values(
            tenant=tenant, name=experiment.name, created_at=created_at, **values
        )
        with self.database.write() as connection:
            self._touch(connection, tenant)
            connection.execute(insert.on_conflict_do_update(index_elements=["tenant", "name"], set_=values))

    def experiments(self, tenant: str) -> dict[str, Experiment]:
        """A tenant's experiments by name."""
        query = select(*(experiments.c[name] for name in Experiment.__dataclass_fields__))
        with self.database.read() as connection:
            rows = connection.execute(query.where(experiments.c.tenant == tenant).order_by(experiments.c.name))
            return {row.name: Experiment(*row) for row in rows}


def group_of(experiment: Experiment, user_id: str) -> str:
    """The group of a user: by a hash of user and name, the same in every process and at every time."""
    digest = sha256(f"{experiment.name}\0{user_id}".encode("utf-8", "surrogatepass")).digest()
    shares = {name: float(group["share"]) for name, group in sorted(experiment.groups.items())}
    place = int.from_bytes(digest[:8], "big") / 2**64 * sum(shares.values())
    for name, share in shares.items():
        if place < share:
            return name
        place -= share
    return name


def check_experiment(experiment: Experiment) -> None:
    """Raises InputError for an experiment that cannot be stored or that compares nothing."""
    check_text(experiment.name, "experiment", length=NAME_LENGTH)
    check_flag(experiment.is_running, "is_running")
    check_number(experiment.created_at, "created_at", is_optional=True)
    check_fields(experiment.groups, f"groups of experiment {experiment.name!r}")
    if len(experiment.groups) < 2:
        raise InputError(f"experiment {experiment.name!r} has {len(experiment.groups)} groups, expected at least 2.")
    for name, group in experiment.groups.items():
        check_text(name, "experiment_group", length=NAME_LENGTH)
        check_fields(group, f"settings of group {name!r}")
        check_number(group.get("share"), f"share of group {name!r}")
        if group["share"] <= 0:
            raise InputError(f"got the share {group['share']} of group {name!r}, expected one above 0.")


def _versions(tenant: str) -> Any:
    columns = (model_versions.c[name] for name in ModelVersion.__dataclass_fields__)
    return select(*columns).where(model_versions.c.tenant == tenant)
