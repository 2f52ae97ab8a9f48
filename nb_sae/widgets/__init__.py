"""Dashboards: tables in, buffers and small JSON out to the browser."""
