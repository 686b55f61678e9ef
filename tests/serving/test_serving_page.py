"""The page: what it shows, that item text does no harm on it, and that foreign forms are refused."""

import re

import pytest
from tests.serving.test_app import client_of, good


@pytest.fixture
def client(run, tmp_path):
    with client_of(run, tmp_path) as client:
        yield client


def shown(client, path="/"):
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    return answer.text


def token_of(text):
    return re.search(r'name="csrf" value="([^"]+)"', text)[1]


def test_it_begins_without_a_user_and_shows_the_figures(client, system):
    text = shown(client)
    assert "Begin with a user" in text
    assert "version 1" in text
    assert "Not shown" not in text


def test_recommendations_stand_side_by_side_with_bars_and_reasons(client, system):
    user = system.model.catalogue.user_ids[0]
    text = shown(client, f"/?user={user}")
    titles = ("All together", "Collaborative filter", "Text", "Language model")
    assert [title in text for title in titles] == [True] * 4
    together = text.partition("<h2>All together</h2>")[2].partition("</section>")[0]
    expected = system.recommend(user=user, k=8, use_llm=False)
    linked = re.findall(r'href="/\?item=([^"#]+)#item"', together)
    assert linked == [one.item_id for one in expected]
    assert together.count('class="bars"') == 8
    assert "none is started" in text


def test_a_history_is_built_by_clicking(client, system):
    title = system.model.catalogue.titles[3]
    text = shown(client, f"/?search={title}")
    link = re.search(r'<li><a href="(/\?[^"]*history=[^"]+)">\+', text)[1].replace("&amp;", "&")
    text = shown(client, link)
    assert "History, the latest last" in text
    assert "<h2>All together</h2>" in text


def test_a_text_finds_items_and_an_added_item_shows_to_whom_it_would_go(client, system):
    assert system.model.catalogue.item_ids[4] in shown(client, f"/?query={system.model.catalogue.texts[4]}")
    token = token_of(shown(client))
    answer = client.post("/items", data={"csrf": token, "title": "rose hand cream", "item_id": "added"})
    assert answer.url.query == b"item=added"
    assert "rose hand cream" in answer.text
    assert answer.text.count("log probability") == 8


def test_a_form_of_elsewhere_is_refused(client):
    token = token_of(shown(client))
    assert client.post("/items", data={"title": "x"}).status_code == 403
    assert client.post("/items", data={"csrf": token + "x", "title": "x"}).status_code == 403
    origin = {"Origin": "http://evil.example"}
    assert client.post("/items", data={"csrf": token, "title": "x"}, headers=origin).status_code == 403
    assert client.post("/items", data={"csrf": token, "title": " "}).status_code == 422


def test_item_text_is_escaped(client):
    title = '<script>alert("x")</script> "><img src=x onerror=alert(1)>'
    good(client.post("/v1/items", json={"items": [{"item_id": '"><b>', "fields": {"title": title}}]}))
    for path in ("/?search=script", "/?query=script", '/?item="><b>', '/?user="><b>&search="><b>'):
        text = shown(client, path)
        assert "<script>" not in text
        assert "<img" not in text
        assert "<b>" not in text
    assert client.get("/").headers["content-security-policy"].startswith("default-src 'self'")


def test_experiments_stand_with_their_note(client):
    good(client.put("/v1/experiments/blue", json={"groups": {"a": {"share": 1}, "b": {"share": 1}}}))
    text = shown(client)
    assert "blue" in text
    assert "one look" in text


def test_with_keys_the_page_asks_for_one(run, tmp_path):
    with client_of(run, tmp_path, needs_key=True) as client:
        assert client.get("/").status_code == 401
        assert 'name="key"' in client.get("/", headers={"Accept": "text/html"}).text
        token = token_of(shown(client, "/login"))
        assert client.post("/login", data={"csrf": token, "key": "allrec_no"}).status_code == 401
        key = client.app.state.store.keys.create("default", scopes=["read"])
        assert "Begin with a user" in client.post("/login", data={"csrf": token, "key": key}).text
        # The cookie opens the page alone: the routes want the header, which no other site can set.
        assert client.get("/v1/popular").status_code == 401
        assert client.post("/items", data={"csrf": token, "title": "x"}).status_code == 403
