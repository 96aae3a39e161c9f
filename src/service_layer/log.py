"""The logger `conversation_store`: what an operator should know, never what was said."""

from __future__ import annotations

import logging
from typing import Final

LOGGER: Final = logging.getLogger("conversation_store")
LOGGER.addHandler(logging.NullHandler())  # a host that configures no logging hears nothing
