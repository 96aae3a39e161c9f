"""The page in a real browser, on the service as it is served: what a person sees and does."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from conversation_store import ConversationStore, MessageDraft, start_conversation
from conversation_store.adapters.postgres.embedded import EmbeddedPostgres

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not (CHROMIUM and DRIVER) and "CONVERSATION_STORE_CI" not in os.environ:
    pytest.skip(
        "needs chromium and chromedriver (Debian: chromium-driver)", allow_module_level=True
    )

HOSTILE = (
    """<script>document.title = "broken"</script><img src=x onerror="document.title='broken'">"""
)
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}


def serve(**environment: str) -> subprocess.Popen[str]:
    """Start the service."""
    return subprocess.Popen(
        [sys.executable, "-m", "chat"],
        env={key: value for key, value in os.environ.items() if key != "PORT"} | environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def address_of(service: subprocess.Popen[str]) -> str:
    """Return the address that a service says, once it does."""
    assert service.stdout is not None
    return service.stdout.readline().split()[0]


@pytest.fixture(scope="module")
def dsn() -> Iterator[str]:
    """Give a server, which tests may fill behind the service's back."""
    with EmbeddedPostgres() as server:
        yield server.dsn


@pytest.fixture(scope="module")
def address(dsn: str) -> Iterator[str]:
    """Give the address of the service; Ctrl-C ends it in good order."""
    with serve(CONVERSATION_STORE_DSN=dsn) as service:
        yield address_of(service)
        service.send_signal(signal.SIGINT)
        assert service.wait(10) == 0


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder that the browser puts files into."""
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def chromium(downloads: Path) -> Iterator[Chrome]:
    """Give a browser without a window."""
    assert CHROMIUM, "there is no chromium on PATH"
    assert DRIVER, "there is no chromedriver on PATH"
    options = ChromeOptions()
    options.binary_location = CHROMIUM
    options.add_argument("--headless=new")
    options.add_argument("--window-size=1120,760")
    options.add_argument("--disable-dev-shm-usage")
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with Chrome(options, ChromeService(DRIVER)) as browser:
        yield browser


class Page:
    """A tab with the page."""

    def __init__(self, browser: Chrome, address: str, user: str) -> None:
        self.browser, self.address, self.user = browser, address, user
        browser.switch_to.new_window("tab")
        self.tab = browser.current_window_handle
        self.become(user)
        self.go("")

    def become(self, user: str) -> None:
        """Set the cookie that says who asks."""
        cookie = {"name": "user", "value": quote(user), "url": self.address}
        self.browser.execute_cdp_cmd("Network.setCookie", cookie)

    def go(self, fragment: str) -> None:
        """Load the page anew, at a conversation."""
        self.browser.get("about:blank")  # where only the fragment differs nothing would be loaded
        self.browser.get(f"{self.address}/{fragment}")
        self.until(lambda: self.at("tokens").text)

    @property
    def fragment(self) -> str:
        """Return what of the address names the conversation."""
        return f"#{self.browser.current_url.partition('#')[2]}"

    def look(self) -> None:
        """Turn to this tab."""
        self.browser.switch_to.window(self.tab)

    def until(self, what: Callable[[], Any]) -> None:
        """Wait until something holds."""
        WebDriverWait(self.browser, 15, poll_frequency=0.05).until(lambda _: what())

    def at(self, name: str) -> WebElement:
        """Return an element by its id."""
        return self.browser.find_element(By.ID, name)

    def all(self, selector: str) -> list[WebElement]:
        """Return elements by a selector."""
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        """Return the texts of elements, as they are in the document."""
        script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
        texts: list[str] = self.browser.execute_script(script, selector)
        return texts

    def messages(self) -> list[str]:
        """Return what is shown of the conversation, as far as it is stored."""
        return self.texts("#messages li[data-position] > :last-child")

    def listed(self) -> list[str]:
        """Return the titles of the list."""
        return self.texts("#list .name")

    def say(self, text: str) -> None:
        """Write a message and send it."""
        self.at("text").send_keys(text, Keys.ENTER)

    def take_turn(self, text: str) -> None:
        """Write a message, and wait until it is answered."""
        before = len(self.messages())
        self.say(text)
        self.until(lambda: len(self.messages()) == before + 2 and self.at("send").is_displayed())

    def keep(self, session: str, text: str) -> None:
        """Have the tab keep a turn of the user that could not be sent."""
        turn = {"user": quote(self.user), "session": session, "text": text, "request_id": text}
        script = "sessionStorage.setItem('pending', JSON.stringify(arguments[0]))"
        self.browser.execute_script(script, turn)

    def coming(self) -> str:
        """Return as much of an answer as has come."""
        return "".join(self.texts("#messages .coming > :last-child"))


@pytest.fixture
def user() -> str:
    """Give a user whom no other test knows."""
    return f"zoë {secrets.token_hex(4)}"


@pytest.fixture
def page(chromium: Chrome, address: str, user: str) -> Iterator[Page]:
    """Give the page; afterwards nothing may have been complained of in its console."""
    first = chromium.current_window_handle
    page = Page(chromium, address, user)
    yield page
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    complaints = [
        entry["message"]
        for entry in chromium.get_log("browser")  # type: ignore[no-untyped-call]
        if not re.search(r"/api/conversations/\w+\?after=\d+ .* 404", entry["message"])
    ]  # but that a conversation is not there yet, or no more
    for tab in chromium.window_handles:
        if tab != first:
            chromium.switch_to.window(tab)
            chromium.close()
    chromium.switch_to.window(first)
    assert complaints == []


@pytest.fixture
def shot(chromium: Chrome) -> Callable[[str], None]:
    """Give what takes a picture of the page, where pictures are wanted."""
    folder = os.environ.get("CHAT_SHOTS")

    def take(name: str) -> None:
        if folder:
            picture = chromium.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
            Path(folder, f"example-{name}.png").write_bytes(b64decode(picture["data"]))

    return take


def test_a_conversation_is_played_and_resumed(page: Page) -> None:
    """An answer comes word by word; after a reload all is there, and goes on."""
    assert page.at("title").text == "New conversation"
    page.say("What is a heron?")
    lengths = set[int]()

    def answered() -> bool:
        lengths.add(len(page.coming()))
        return len(page.messages()) == 2

    page.until(answered)
    assert len(lengths) > 3
    question, answer = page.messages()
    assert question == "What is a heron?"
    assert answer.startswith("You say: What is a heron?")
    assert page.at("title").text == "What is a heron?"
    page.until(lambda: page.listed() == ["What is a heron?"])
    page.until(lambda: page.at("tokens").text != "0 of 20,000")

    page.browser.refresh()
    page.until(lambda: page.messages() == [question, answer])
    page.take_turn("Where does it live?")
    assert "That is question 2." in page.messages()[-1]
    assert page.browser.switch_to.active_element == page.at("text")


def test_a_reload_in_the_middle_of_an_answer_stores_the_turn_once(page: Page) -> None:
    """The page sends the same request again, with the same key."""
    page.say("word " * 30)
    page.until(lambda: len(page.coming()) > 20)
    page.browser.refresh()
    page.until(lambda: len(page.messages()) == 2)
    time.sleep(0.5)
    page.browser.refresh()
    page.until(page.messages)

    assert len(page.messages()) == 2
    assert page.all("#messages .coming") == []


def test_a_turn_survives_the_end_of_the_service(page: Page, dsn: str) -> None:
    """Killed while it answers, it leaves nothing half; the page sends the turn to the next one."""
    with serve(CONVERSATION_STORE_DSN=dsn) as service:
        page.address = address_of(service)
        page.go("")
        page.say("word " * 20)
        page.until(lambda: len(page.coming()) > 20)
        service.kill()
    page.until(lambda: page.at("again").is_displayed())
    assert page.at("notice").text.startswith("“word word ")
    assert page.all("#messages li") == []
    page.browser.get_log("browser")  # type: ignore[no-untyped-call]  # that complains, rightly

    with serve(CONVERSATION_STORE_DSN=dsn, PORT=page.address.rpartition(":")[2]) as service:
        assert address_of(service) == page.address
        page.at("again").click()
        page.until(lambda: len(page.messages()) == 2)
        assert not page.at("notice").text
        service.terminate()


def test_what_could_not_be_sent_goes_before_what_is_said_next(page: Page) -> None:
    """A turn that waits to be sent again is not forgotten, and keeps its place."""
    page.take_turn("One")
    page.keep(page.fragment[1:], "Two")
    page.say("Three")
    page.until(lambda: len(page.messages()) == 6)

    assert page.messages()[::2] == ["One", "Two", "Three"]


def test_what_could_not_be_sent_is_not_said_by_who_comes_next(page: Page) -> None:
    """Who one is may have been changed in another tab."""
    page.take_turn("Mine")
    page.keep(page.fragment[1:], "Mine, too")
    page.become(f"not {page.user}")
    page.go("")
    page.take_turn("Hello")

    assert page.messages()[0] == "Hello"
    page.until(lambda: page.listed() == ["Hello"])


def test_an_answer_that_is_stopped_leaves_nothing(page: Page) -> None:
    """What was asked is in the field again, and nothing is stored or charged."""
    page.say("word " * 100)
    page.until(lambda: len(page.coming()) > 20)
    page.at("stop").click()
    page.until(lambda: page.at("send").is_displayed())

    assert page.at("text").get_property("value") == ("word " * 100).strip()
    assert page.all("#messages li") == []
    time.sleep(1)
    page.browser.refresh()
    page.until(lambda: page.at("tokens").text == "0 of 20,000")
    assert page.listed() == []


def test_an_answer_that_is_stopped_too_late_is_not_stored_twice(page: Page) -> None:
    """It was stored, and only its end was still on the way: sent again it is that turn."""
    page.browser.execute_script(
        """
        const real = fetch;
        window.fetch = async (path, options) => {
            const response = await real(path, options);
            if (options?.method !== "POST") return response;
            window.fetch = real;
            await response.text();  // all of it is stored now
            const body = new ReadableStream({
                start: (told) => options.signal.addEventListener("abort", () => told.error("no")),
            });
            document.body.dataset.isStored = "yes";
            return new Response(body);
        };
        """
    )
    page.say("Hello")
    page.until(lambda: page.all("body[data-is-stored]"))
    page.at("stop").click()
    page.until(lambda: page.at("send").is_displayed())
    page.at("send").click()
    page.until(lambda: len(page.messages()) == 2)

    page.browser.refresh()
    page.until(lambda: len(page.messages()) == 2)
    page.take_turn("Hello")
    assert page.messages()[::2] == ["Hello", "Hello"]


def test_what_was_said_is_found(page: Page) -> None:
    """A hit leads to its message; what is not there is not found; the list comes back."""
    page.take_turn("A quiet place in Zürich")
    page.at("new").click()
    page.take_turn("Something else")
    page.at("query").send_keys("zürich QUIET")
    page.until(lambda: page.at("found").text == "2 messages")

    assert {text.lower() for text in page.texts("#list mark")} == {"quiet", "zürich"}
    page.all("#list a")[-1].click()
    page.until(lambda: page.texts("#messages .sought > :last-child") == ["A quiet place in Zürich"])
    page.at("query").send_keys(" nowhere")
    page.until(lambda: page.at("found").text == "0 messages")
    page.at("query").clear()
    page.at("query").send_keys(" ")
    page.until(lambda: page.listed() == ["Something else", "A quiet place in Zürich"])


def test_conversations_are_downloaded(page: Page, downloads: Path, user: str) -> None:
    """The file holds the conversations of the user, a line each."""
    page.take_turn("Keep this: é 東京 😀")
    page.browser.find_element(By.LINK_TEXT, "Export").click()
    file = downloads / "conversations.jsonl"
    page.until(file.exists)

    [record] = map(json.loads, file.read_text("utf-8").splitlines())
    file.unlink()
    assert record["user_id"] == user
    assert [said["content"] for said in record["messages"]] == page.messages()


def test_hostile_text_is_text(page: Page) -> None:
    """What looks like HTML is shown as it was written: in a bubble, the title, the list, a hit."""
    page.take_turn(HOSTILE)
    page.at("query").send_keys("script")
    page.until(lambda: page.at("found").text == "2 messages")

    assert page.messages()[0] == HOSTILE
    assert page.at("title").text == f"{HOSTILE[:59]}…"
    assert any("<script>" in text for text in page.texts("#list a"))
    page.browser.refresh()
    page.until(page.messages)
    assert page.browser.title == "Chat"
    assert page.all("body script, #messages img, #list img") == []


def test_two_tabs_show_the_same_conversation(page: Page, address: str, user: str) -> None:
    """What is said in one is soon in the other, and what both say stands in one order."""
    page.take_turn("In the first tab")
    fragment = page.fragment
    other = Page(page.browser, address, user)
    other.go(fragment)
    other.until(lambda: len(other.messages()) == 2)
    other.take_turn("In the second tab")
    page.look()
    page.until(lambda: len(page.messages()) == 4)

    page.say("Both at once")
    other.look()
    other.say("Both at once")
    other.until(lambda: len(other.messages()) == 8)
    said = other.messages()
    page.look()
    page.until(lambda: page.messages() == said)

    assert said[4] == said[6] == "Both at once"
    assert said[5].startswith("You say: ")
    assert said[7].startswith("You say: ")


async def test_long_histories_come_by_pages(page: Page, dsn: str, user: str) -> None:
    """Earlier messages and earlier conversations are there for the asking; so is an early hit."""
    async with ConversationStore.connect(dsn) as store:
        uow = store.unit_of_work(user_id=user)
        drafts = [MessageDraft(role="user", content=f"message {n}") for n in range(1, 121)]
        await start_conversation(uow, session_id="long", drafts=drafts)
        for n in range(24):
            await start_conversation(uow, session_id=f"s-{n:02}")
    page.go("#long")

    page.until(lambda: page.messages()[:1] == ["message 71"])
    page.at("earlier").click()
    page.until(lambda: page.messages()[:1] == ["message 21"])
    assert len(page.listed()) == 20
    page.at("more").click()
    page.until(lambda: len(page.listed()) == 25)
    assert page.listed()[-1] == "long"
    page.at("query").send_keys("5")
    page.until(lambda: page.at("found").text == "1 message")
    page.browser.refresh()
    page.until(page.messages)
    page.at("query").send_keys("5")
    page.until(lambda: page.at("found").text == "1 message")
    page.all("#list a")[0].click()
    page.until(lambda: page.texts("#messages .sought > :last-child") == ["message 5"])
    assert len(page.messages()) == 120


def test_a_closed_conversation_takes_nothing(page: Page) -> None:
    """It can be read; a new one can be begun from there."""
    page.become("okonkwo.adaeze")
    page.go("#app-311")
    page.until(lambda: len(page.messages()) == 9)
    assert not page.at("text").is_enabled()
    assert page.at("text").get_attribute("placeholder") == "This conversation is closed"

    page.at("new").click()
    page.until(lambda: page.at("text").is_enabled())


def test_a_conversation_is_deleted(page: Page, address: str) -> None:
    """After a question whether that is meant; another tab shows it no more, and may begin anew."""
    page.take_turn("Forget this")
    fragment = page.fragment
    other = Page(page.browser, address, page.user)
    other.go(fragment)
    other.until(other.messages)
    page.look()
    page.at("delete").click()
    page.browser.switch_to.alert.accept()
    page.until(lambda: page.at("title").text == "New conversation")
    page.until(lambda: page.listed() == [])

    other.look()
    other.until(lambda: other.at("title").text == "New conversation")
    assert other.messages() == []
    other.take_turn("Anew")


def test_another_user_sees_none_of_it(page: Page) -> None:
    """The field that stands in for a login changes who one is."""
    page.take_turn("Mine")
    page.at("user").clear()
    page.at("user").send_keys("somebody else", Keys.ENTER)
    page.until(lambda: page.at("title").text == "New conversation")
    page.until(lambda: page.at("tokens").text == "0 of 20,000")

    assert page.listed() == []


def test_all_that_can_be_used_has_a_name(page: Page) -> None:
    """Who cannot see the page hears what each thing is for."""
    page.take_turn("Hello")
    everything = page.all("a, button, input, textarea, meter, [role=log]")
    usable = [each for each in everything if each.is_displayed()]

    assert len(usable) >= 9
    assert [each.get_attribute("outerHTML") for each in usable if not each.accessible_name] == []


def test_dark_where_the_reader_has_it_dark(page: Page) -> None:
    """The colours follow the system."""

    def ground(scheme: str) -> str:
        feature = {"name": "prefers-color-scheme", "value": scheme}
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        return page.browser.find_element(By.TAG_NAME, "body").value_of_css_property("background")

    assert ground("dark") != ground("light")


def test_pictures(chromium: Chrome, page: Page, shot: Callable[[str], None]) -> None:
    """The dialogues of examples/ are there on the first day; a phone shows one thing at a time."""
    page.become("renée-lefèvre")
    page.go("#web-2041")
    page.until(lambda: len(page.messages()) >= 7)
    page.say("Which bus takes us there?")
    page.until(lambda: len(page.coming()) > 60)
    shot("desktop")
    page.until(lambda: len(page.messages()) >= 9)
    page.at("query").send_keys("café")
    page.until(lambda: page.all("#list mark"))
    shot("search")

    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    page.go("")
    width = "return document.documentElement.scrollWidth"
    assert page.at("list").is_displayed()
    assert not page.at("text").is_displayed()
    assert chromium.execute_script(width) == PHONE["width"]
    page.browser.find_element(By.PARTIAL_LINK_TEXT, "Find train").click()
    page.until(lambda: len(page.messages()) == 5)
    assert not page.at("list").is_displayed()
    assert chromium.execute_script(width) == PHONE["width"]
    shot("phone")
    page.at("back").click()
    page.until(lambda: page.at("list").is_displayed())


def test_no_server_is_left_however_the_service_ends() -> None:
    """The PostgreSQL that `make example` starts is gone with what it left, after kill -9, too."""
    ends = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
    with TemporaryDirectory(dir="/tmp", prefix="t") as folder:
        Path(folder).chmod(0o755)
        services = [serve(TMPDIR=folder, CONVERSATION_STORE_DSN="") for _ in ends]
        assert all(address_of(service) for service in services)
        assert len(list(Path(folder).glob("pg-*"))) == len(ends)
        for service, end in zip(services, ends, strict=True):
            with service:
                service.send_signal(end)
        until = time.monotonic() + 10
        while list(Path(folder).iterdir()) and time.monotonic() < until:
            time.sleep(0.05)
        assert list(Path(folder).iterdir()) == []
