"""A model that needs no network: put yours in its place."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence

from conversation_store import Message, Role

from ..ports import Model


class StubModel(Model):
    """Tells what it was asked, word by word."""

    def __init__(self, pause: float) -> None:
        self._pause = pause  # seconds before each word

    async def answer(self, history: Sequence[Message], question: str) -> AsyncIterator[str]:
        """Answer with what any model could know: what was said now, and how much before."""
        number = 1 + sum(message.role is Role.USER for message in history)
        answer = f"""You say: {question}

That is question {number}. I am only a stand-in: put your model here, and it answers."""
        for word in re.findall(r"\s*\S+", answer):
            await asyncio.sleep(self._pause)
            yield word
