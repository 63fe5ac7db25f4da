"""The commands of ``espalier``, a module for each group; `service.cli` puts them together."""
