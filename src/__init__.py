"""conversation-store: the conversation layer for hexagonal Python applications.

Conversations and messages, kept in order, whole and once, on PostgreSQL and in memory. Host
applications make a ConversationStore, take units of work from it, and call service functions.
"""

from .bootstrap import ConversationStore
from .domain.conversation import (
    UNCHANGED,
    Conversation,
    ConversationChanges,
    NewConversation,
    Status,
    Unchanged,
)
from .domain.errors import (
    CommitOutcomeUnknown,
    ConcurrentUpdate,
    Conflict,
    ConversationNotAcceptingMessages,
    ConversationNotFound,
    ConversationStoreError,
    DuplicateSession,
    InvalidConversation,
    InvalidCursor,
    InvalidInput,
    InvalidLimit,
    InvalidMessage,
    InvalidRecord,
    InvalidTransition,
    MessageNotFound,
    NotFound,
    RequestConflict,
    RuleViolation,
    StoreClosed,
    StoreError,
    StoreMisconfigured,
    StoreTimeout,
    StoreUnavailable,
    TransactionAborted,
    UnitOfWorkMisuse,
)
from .domain.imported import ImportedConversation, ImportedMessages
from .domain.json_object import JsonObject, storable_json
from .domain.message import Message, MessageDraft, Role
from .domain.page import ConversationPage
from .domain.receipt import ErasureReceipt, ImportReceipt
from .domain.record import ConversationRecord, MessageRecord, dump_record
from .domain.removal import RemovalCondition, RemovedBatch
from .domain.repository import (
    ConversationRepository,
    ExportedRecords,
    MessageRepository,
    OnDuplicate,
)
from .domain.text import storable_text
from .domain.unit import Pending, Write
from .service_layer.conversations import (
    archive_conversation,
    close_conversation,
    find_conversation,
    get_conversation,
    get_or_start_conversation,
    list_conversations,
    reopen_conversation,
    start_conversation,
    update_conversation,
)
from .service_layer.messages import (
    append_messages,
    get_message,
    latest_messages,
    messages_after,
    pop_message,
    redact_message,
    replace_messages,
)
from .service_layer.observer import Observation, Observer, PoolState, Tally
from .service_layer.outcome import Outcome
from .service_layer.removal import delete_conversation, erase_user, purge_conversations
from .service_layer.retry import Retry
from .service_layer.run import run_unit
from .service_layer.transfer import export_conversations, import_conversations
from .service_layer.unit_of_work import AsyncUnitOfWork

__all__ = [
    "AsyncUnitOfWork",
    "CommitOutcomeUnknown",
    "ConcurrentUpdate",
    "Conflict",
    "Conversation",
    "ConversationChanges",
    "ConversationNotAcceptingMessages",
    "ConversationNotFound",
    "ConversationPage",
    "ConversationRecord",
    "ConversationRepository",
    "ConversationStore",
    "ConversationStoreError",
    "DuplicateSession",
    "ErasureReceipt",
    "ExportedRecords",
    "ImportReceipt",
    "ImportedConversation",
    "ImportedMessages",
    "InvalidConversation",
    "InvalidCursor",
    "InvalidInput",
    "InvalidLimit",
    "InvalidMessage",
    "InvalidRecord",
    "InvalidTransition",
    "JsonObject",
    "Message",
    "MessageDraft",
    "MessageNotFound",
    "MessageRecord",
    "MessageRepository",
    "NewConversation",
    "NotFound",
    "Observation",
    "Observer",
    "OnDuplicate",
    "Outcome",
    "Pending",
    "PoolState",
    "RemovalCondition",
    "RemovedBatch",
    "RequestConflict",
    "Retry",
    "Role",
    "RuleViolation",
    "Status",
    "StoreClosed",
    "StoreError",
    "StoreMisconfigured",
    "StoreTimeout",
    "StoreUnavailable",
    "Tally",
    "TransactionAborted",
    "UNCHANGED",
    "Unchanged",
    "UnitOfWorkMisuse",
    "Write",
    "__version__",
    "append_messages",
    "archive_conversation",
    "close_conversation",
    "delete_conversation",
    "dump_record",
    "erase_user",
    "export_conversations",
    "find_conversation",
    "get_conversation",
    "get_message",
    "get_or_start_conversation",
    "import_conversations",
    "latest_messages",
    "list_conversations",
    "messages_after",
    "pop_message",
    "purge_conversations",
    "redact_message",
    "reopen_conversation",
    "replace_messages",
    "run_unit",
    "start_conversation",
    "storable_json",
    "storable_text",
    "update_conversation",
]
__version__ = "0.1.0"
