"""Radiance fields: one small base class, four ways to keep one, and their files."""
