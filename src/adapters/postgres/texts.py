"""The statements of one store: composed once, with the names of its schema."""

from __future__ import annotations

import re
from typing import Final

from psycopg.sql import Identifier, Literal

from . import row_security, sql, sql_history, sql_reads, sql_removal

_PLACE: Final = re.compile(r"\{(\w+)\}")


class Texts:
    """The statements of one store: the templates above with the names of its schema."""

    def __init__(self, schema: str) -> None:
        def identifier(name: str) -> str:
            return Identifier(schema, name).as_string()

        def compose(template: str) -> bytes:
            return _PLACE.sub(lambda place: names[place[1]], template.strip()).encode()

        conversations, messages = identifier("ai_conversations"), identifier("ai_messages")
        names = {
            "conversations": conversations,
            "conversations_name": Literal(conversations).as_string(),
            "messages": messages,
            "messages_name": Literal(messages).as_string(),
            "refuse": identifier("refuse"),
        }
        # A % in a statement with parameters is written twice.
        names = {place: name.replace("%", "%%") for place, name in names.items()}
        self.sequence = identifier("ai_ids")
        self.scope = compose(row_security.SCOPE)
        self.scope_for_a_while = compose(row_security.SCOPE_FOR_A_WHILE)
        self.start = compose(sql.START)
        self.start_request = compose(sql.START_REQUEST)
        self.get_or_start = compose(sql.GET_OR_START)
        self.get_or_start_request = compose(sql.GET_OR_START_REQUEST)
        self.append = compose(sql.APPEND)
        self.append_request = compose(sql.APPEND_REQUEST)
        self.append_together = compose(sql.APPEND_TOGETHER)
        self.look_for_start = compose(sql_reads.LOOK_FOR_START)
        self.look_for_start_request = compose(sql_reads.LOOK_FOR_START_REQUEST)
        self.look_for_turn = compose(sql_reads.LOOK_FOR_TURN)
        self.look_for_request = compose(sql_reads.LOOK_FOR_REQUEST)
        self.redact = compose(sql.REDACT)
        self.pop = compose(sql_history.POP)
        self.replace = compose(sql_history.REPLACE)
        self.set_status = compose(sql.SET_STATUS)
        self.update = compose(sql.UPDATE)
        self.remove = compose(sql.REMOVE)
        self.remove_part = compose(sql_removal.REMOVE_PART)
        self.remove_some = compose(sql_removal.REMOVE_SOME)
        self.remove_some_of_user = compose(sql_removal.REMOVE_SOME_OF_USER)
        self.find_removable = compose(sql_removal.FIND_REMOVABLE)
        self.find_removable_of_user = compose(sql_removal.FIND_REMOVABLE_OF_USER)
        self.look_for_rest = compose(sql_removal.LOOK_FOR_REST)
        self.look_up = compose(sql.LOOK_UP)
        # A text without parameters is sent as it is.
        self.copy_conversations = compose(sql.COPY_CONVERSATIONS).replace(b"%%", b"%")
        self.copy_messages = compose(sql.COPY_MESSAGES).replace(b"%%", b"%")
        self.get = compose(sql_reads.GET)
        self.find = compose(sql_reads.FIND)
        self.list = compose(sql_reads.LIST)
        self.list_of_status = compose(sql_reads.LIST_OF_STATUS)
        self.get_message = compose(sql_reads.GET_MESSAGE)
        self.latest = compose(sql_reads.LATEST)
        self.after = compose(sql_reads.AFTER)
        self.export = compose(sql_reads.EXPORT)
        self.export_of_user = compose(sql_reads.EXPORT_OF_USER)
        self.next_ids = compose(sql_reads.NEXT_IDS)
