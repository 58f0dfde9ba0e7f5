"""Where policies of AppArmor lie in the store."""

from __future__ import annotations

# Prefix of the blobs with AppArmor's policies.
APPARMOR_BLOBS = "apparmor/"
