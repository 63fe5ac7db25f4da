"""Settings of the API, from the environment (``ESPALIER_…``)."""

from pydantic import Field

from search.settings import CommonSettings


class ServiceSettings(CommonSettings):
    """Where the API listens and whom it answers."""

    host: str = Field(default="127.0.0.1", description="Address to listen on; without an API key only a loopback one.")
    port: int = Field(default=8765, ge=0, le=65535, description="Port to listen on; 0: any that is free.")
    api_key: str = Field(
        default="", repr=False, description="Bearer token that every /v1 call must carry; empty: none is asked for."
    )
    allowed_hosts: list[str] = Field(
        default_factory=list,
        description="JSON list of host names, besides the loopback ones, under which the API without a key is reached.",
    )
    driver_timeout_s: float = Field(
        default=30.0, gt=0, description="Seconds of silence after which a driver no longer counts for /readyz."
    )
