"""Devices: mesh, sharding rules, processes."""
