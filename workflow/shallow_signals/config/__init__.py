"""Closed typed models of the configuration: the source of truth for defaults and the JSON schema."""
