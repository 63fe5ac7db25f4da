"""Settings that the service and the workers share, from the environment (``ESPALIER_…``)."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class CommonSettings(BaseSettings):
    """Where things are. Everything else follows from `home` unless set."""

    model_config = SettingsConfigDict(env_prefix="ESPALIER_", extra="ignore")

    home: Path = Field(default=Path("~/.espalier"), description="Folder of the embedded database and artifacts.")
    database_url: str = Field(
        default="", description="SQLAlchemy URL; empty: SQLite in `home`. PostgreSQL: postgresql+psycopg://…"
    )
    artifacts_url: str = Field(default="", description="fsspec URL or folder of artifacts; empty: below `home`.")
    model_roots: list[Path] = Field(
        default_factory=list, description="JSON list of folders below which teachers may be named."
    )
    data_roots: list[Path] = Field(
        default_factory=list, description="JSON list of folders below which text and tasks may be named."
    )
    allow_hub: bool = Field(
        default=False, description="Whether text may be named by a dataset of the Hugging Face hub, hf://datasets/…"
    )

    @property
    def home_dir(self) -> Path:
        """`home`, absolute, with ~ expanded."""
        return self.home.expanduser().absolute()

    @property
    def database(self) -> str:
        """The database's URL."""
        return self.database_url or f"sqlite:///{self.home_dir / 'espalier.db'}"

    @property
    def artifacts(self) -> str:
        """The artifact store's URL or folder."""
        return self.artifacts_url or str(self.home_dir / "artifacts")
