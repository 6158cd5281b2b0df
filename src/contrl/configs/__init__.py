"""Shipped run configurations, as package data."""
