import json

import pytest

from qwen_agent.errors import InputError, MissingDependency
from qwen_agent.tools import web_search as module
from qwen_agent.tools.web_search import Hit, backend_from, duckduckgo, google, searxng, serpapi, serper, web_search

KEY = "s3cret-key"

# The shapes that the services document, shortened.
SERPAPI = {
    "search_metadata": {"id": "1", "status": "Success"},
    "search_parameters": {"engine": "google", "q": "eiffel tower height"},
    "search_information": {"organic_results_state": "Results for exact spelling"},
    "answer_box": {
        "type": "organic_result",
        "title": "Eiffel Tower / Height",
        "answer": "330 m",
        "link": "https://tower.test/",
    },
    "organic_results": [
        {
            "position": 1,
            "title": "Eiffel Tower - Wikipedia",
            "link": "https://en.wikipedia.test/wiki/Eiffel_Tower",
            "displayed_link": "https://en.wikipedia.test › wiki",
            "snippet": "The tower is 330 metres (1,083 ft) tall.",
        },
        {"position": 2, "title": "Without a snippet", "link": "https://two.test/"},
    ],
}
SERPER = {
    "searchParameters": {"q": "eiffel tower height", "type": "search", "engine": "google"},
    "answerBox": {"title": "Eiffel Tower / Height", "snippet": "330 m", "link": "https://tower.test/"},
    "organic": [
        {
            "title": "Eiffel Tower - Wikipedia",
            "link": "https://en.wikipedia.test/wiki/Eiffel_Tower",
            "snippet": "The tower is 330 metres (1,083 ft) tall.",
            "position": 1,
        },
        {"title": "Without a snippet", "link": "https://two.test/", "position": 2},
    ],
    "credits": 1,
}
GOOGLE = {
    "kind": "customsearch#search",
    "searchInformation": {"totalResults": "2"},
    "items": [
        {
            "kind": "customsearch#result",
            "title": "Eiffel Tower - Wikipedia",
            "htmlTitle": "<b>Eiffel Tower</b> - Wikipedia",
            "link": "https://en.wikipedia.test/wiki/Eiffel_Tower",
            "snippet": "The tower is 330 metres\n(1,083 ft) tall.",
        },
        {"kind": "customsearch#result", "title": "Without a snippet", "link": "https://two.test/"},
    ],
}
SEARXNG = {
    "query": "eiffel tower height",
    "number_of_results": 0,
    "results": [
        {
            "url": "https://en.wikipedia.test/wiki/Eiffel_Tower",
            "title": "Eiffel Tower - Wikipedia",
            "content": "The tower is 330 metres (1,083 ft) tall.",
            "engines": ["brave"],
            "score": 1.0,
        },
        {"url": "https://two.test/", "title": "Without a snippet", "content": None},
    ],
    "answers": [],
    "unresponsive_engines": [["google", "Suspended: CAPTCHA"]],
}
TWO = """Eiffel Tower - Wikipedia
https://en.wikipedia.test/wiki/Eiffel_Tower
The tower is 330 metres (1,083 ft) tall."""

SERVICES = {
    "SerpAPI": ("/search.json", SERPAPI, lambda url: serpapi(KEY, url)),
    "Serper": ("/search", SERPER, lambda url: serper(KEY, url)),
    "Google": ("/customsearch/v1", GOOGLE, lambda url: google(KEY, "engine-id", url)),
    "SearXNG": ("/search", SEARXNG, searxng),
}


@pytest.fixture(params=SERVICES)
def service(request, server):
    """Each service in turn: its name, a function that sets what it answers, and a tool that asks it."""
    path, good, backend = SERVICES[request.param]

    def answer(status="200 OK", body=good, kind="application/json"):
        server.page(path, body if isinstance(body, str | bytes) else json.dumps(body), status, kind)

    answer()
    return request.param, answer, web_search(backend(server.url))


def said(tool, query="eiffel tower height") -> str:
    return tool.invoke({"query": query}).content


def test_title_address_and_snippet(service):
    _, _, tool = service
    found = said(tool)
    assert f"] {TWO}" in found and found.endswith("] Without a snippet\nhttps://two.test/")


def test_the_answer_box_comes_first(server):
    for name in ("SerpAPI", "Serper"):
        path, good, backend = SERVICES[name]
        server.page(path, json.dumps(good), kind="application/json")
        assert said(web_search(backend(server.url))).startswith(
            "[1] Eiffel Tower / Height\nhttps://tower.test/\n330 m\n[2] Eiffel Tower - Wikipedia\n"
        )


def test_what_is_asked(server):
    for path, good, backend in SERVICES.values():
        server.page(path, json.dumps(good), kind="application/json")
        said(web_search(backend(server.url), results=3), "  eiffel\n tower & co ")
    by_serpapi, by_serper, by_google, by_searxng = server.asked
    assert by_serpapi.startswith("GET /search.json?engine=google&q=eiffel+tower+%26+co&num=3&api_key=s3cret-key HTTP")
    assert by_serper.startswith("POST /search HTTP") and "\r\nX-API-KEY: s3cret-key\r\n" in by_serper
    assert by_serper.endswith('{"q": "eiffel tower & co", "num": 3}')
    assert by_google.startswith("GET /customsearch/v1?key=s3cret-key&cx=engine-id&q=eiffel+tower+%26+co&num=3 HTTP")
    assert by_searxng.startswith("GET /search?q=eiffel+tower+%26+co&format=json HTTP")
    assert "s3cret" not in by_searxng


@pytest.mark.parametrize(
    "name, status, body",
    [
        (
            "SerpAPI",
            "401 Unauthorized",
            {"error": "Invalid API key. Your API key should be here: https://serpapi.com/x"},
        ),
        ("Serper", "403 Forbidden", {"message": "Unauthorized.", "statusCode": 403}),
        (
            "Google",
            "400 Bad Request",
            {
                "error": {
                    "code": 400,
                    "message": "API key not valid. Please pass a valid API key.",
                    "status": "INVALID_ARGUMENT",
                    "details": [{"reason": "API_KEY_INVALID", "domain": "googleapis.com"}],
                }
            },
        ),
        ("Google", "403 Forbidden", {"error": {"code": 403, "message": "The request is missing a valid API key."}}),
    ],
)
def test_a_bad_key(server, name, status, body):
    path, _, backend = SERVICES[name]
    server.page(path, json.dumps(body), status, "application/json")
    settings = {"SerpAPI": "SERPAPI_KEY", "Serper": "SERPER_API_KEY", "Google": "GOOGLE_CSE_KEY and GOOGLE_CSE_ID"}
    assert said(web_search(backend(server.url))) == f"{name} refuses the key: check {settings[name]}."


@pytest.mark.parametrize(
    "name, status, body",
    [
        ("SerpAPI", "429 Too Many Requests", {"error": "Your account has run out of searches."}),
        ("Serper", "400 Bad Request", {"message": "Not enough credits", "statusCode": 400}),
        ("Serper", "429 Too Many Requests", {"message": "Too many requests"}),
        (
            "Google",
            "429 Too Many Requests",
            {"error": {"code": 429, "message": "Quota exceeded for quota metric 'Queries'"}},
        ),
        ("Google", "403 Forbidden", {"error": {"code": 403, "message": "Daily quota exceeded."}}),
        ("SearXNG", "429 Too Many Requests", "<h1>Too Many Requests</h1>"),
    ],
)
def test_a_used_up_quota(server, name, status, body):
    path, _, backend = SERVICES[name]
    server.page(path, body if isinstance(body, str) else json.dumps(body), status)
    assert said(web_search(backend(server.url))) == (f"{name} allows no more searches for now: its quota is used up.")


def test_a_searxng_without_json(server):
    server.page("/search", "<h1>Forbidden</h1>", "403 Forbidden")
    assert said(web_search(searxng(server.url))) == (
        "SearXNG gives no JSON: add json to search.formats in its settings.yml."
    )


@pytest.mark.parametrize("url", ["", "/", "/search", "/search/"])
def test_a_searxng_address_as_people_give_it(server, url):
    server.page("/search", json.dumps(SEARXNG), kind="application/json")
    assert TWO in said(web_search(searxng(server.url + url)))


def test_no_results(server):
    empty = {
        "SerpAPI": {"search_metadata": {}, "error": "Google hasn't returned any results for this query."},
        "Serper": {"organic": [], "credits": 1},
        "Google": {"kind": "customsearch#search", "searchInformation": {"totalResults": "0"}},
        "SearXNG": {"results": [], "unresponsive_engines": []},
    }
    for name, body in empty.items():
        path, _, backend = SERVICES[name]
        server.page(path, json.dumps(body), kind="application/json")
        result = web_search(backend(server.url)).invoke({"query": "xyzzy"})
        assert result.ok and result.content == "No results found for 'xyzzy'."


def test_engines_that_do_not_answer(server):
    server.page("/search", json.dumps({**SEARXNG, "results": []}), kind="application/json")
    assert said(web_search(searxng(server.url))) == "SearXNG got no answer from its engines: google."


@pytest.mark.parametrize(
    "body",
    [
        "",
        "<html>Welcome</html>",
        "[]",
        "null",
        "3",
        '{"error": []}',
        b"\xff\xfe",
        "[" * 100_000,
        '{"organic": {"a": 1}}',
    ]
    + [
        json.dumps(dict.fromkeys(("organic_results", "organic", "items", "results"), value)) for value in (1, [1], [{}])
    ],
)
def test_broken_answers(service, body):
    name, answer, tool = service
    answer(body=body)
    result = said(tool, "x")
    assert result in (f"{name} did not answer with JSON.", "No results found for 'x'.")


@pytest.mark.parametrize("status", ["500 Internal Server Error", "404 Not Found", "302 Found"])
def test_other_failures(service, status):
    name, answer, tool = service
    answer(status, {"error": "Something " * 100, "message": None})
    assert said(tool).startswith(f"{name} answered {status[:3]}") and len(said(tool)) < 250


@pytest.mark.parametrize("name", ["SerpAPI", "Serper", "Google"])
def test_the_key_is_never_shown(server, name):
    path, _, backend = SERVICES[name]
    tool = web_search(backend(server.url))
    told = {"error": f"The key {KEY} at https://x.test/?api_key={KEY} has a problem"}
    for status in ("500 Oops", "400 Bad Request", "302 Found"):
        server.page(path, json.dumps(told), status)
        assert KEY not in said(tool)
    server.pages[path] = lambda stream: None
    assert KEY not in said(tool) + str(tool.describe()) + repr(tool)


def test_a_service_that_is_not_there():
    tool = web_search(searxng("http://127.0.0.1:9"))
    assert said(tool).startswith("127.0.0.1 cannot be reached")


def test_a_service_that_is_slow(server, monkeypatch):
    monkeypatch.setattr(module, "_SECONDS", 0.5)
    server.pages["/search"] = lambda stream: __import__("time").sleep(3)
    assert said(web_search(searxng(server.url))) == "127.0.0.1 did not answer within 0.5 s."


def test_results_are_clean_and_short():
    hits = [
        Hit("A " * 200, "https://one.test/", "word " * 200),
        Hit("A again", "https://one.test/", "the same page"),
        Hit("Script", "javascript:alert(1)", "no page"),
        Hit("", "http://two.test/", ""),
        Hit("Three", "http://three.test/", "left out"),
    ]
    found = said(web_search(lambda query, results: hits, results=2)).splitlines()
    assert found[0].startswith("[1] A A") and found[1:2] + found[3:] == [
        *("https://one.test/", "[2] Untitled", "http://two.test/")
    ]
    assert all(len(line) <= 254 for line in found)


@pytest.mark.parametrize(
    "text, plain", [("a <b>b</b> &amp;\n c", "a b & c"), (None, ""), (3, "3"), ("1 < 2 > 0", "1 < 2 > 0")]
)
def test_marks_are_removed(text, plain):
    assert module._plain(text) == plain


def test_a_query_that_is_empty_or_very_long():
    asked = []
    tool = web_search(lambda query, results: asked.append(query) or [])
    assert not tool.invoke({"query": " \n"}).ok
    assert tool.invoke({"query": "长" * 1000}).ok and len(asked[0]) == 200


# ---- DuckDuckGo -----------------------------------------------------------------------------------------------------

# As html.duckduckgo.com answers, shortened to what a result consists of.
DUCK = """<html><body><div class="serp__results"><div id="links" class="results">
<div class="result results_links result--ad"><div class="links_main links_deep result__body">
  <h2 class="result__title"><a href="https://duckduckgo.com/y.js?ad=1">An advertisement</a></h2>
  <a class="result__snippet" href="https://duckduckgo.com/y.js?ad=1">Buy towers.</a></div></div>
<div class="result results_links web-result"><div class="links_main links_deep result__body">
  <h2 class="result__title"><a class="result__a" href="https://en.wikipedia.test/wiki/Eiffel_Tower">Eiffel Tower
   - Wikipedia</a></h2>
  <div class="result__extras"><a class="result__url" href="https://en.wikipedia.test/">en.wikipedia.test</a></div>
  <a class="result__snippet" href="https://en.wikipedia.test/wiki/Eiffel_Tower">The <b>tower</b> is 330 metres
   (1,083 ft) tall.</a></div></div>
</div></div></body></html>"""


@pytest.fixture
def duck(monkeypatch):
    """ddgs as it is, but for the function that sends its requests; what it is to answer, and what it was asked."""
    client = pytest.importorskip("ddgs.http_client").HttpClient
    asked: list[tuple[object, ...]] = []

    class Answer:
        status_code, text = 200, DUCK

    def request(self, method, url, **options):
        asked.append((method, url, options))
        if isinstance(Answer.text, Exception):
            raise Answer.text
        return Answer

    monkeypatch.setattr(client, "request", request)
    return Answer, asked


def test_duckduckgo(duck):
    _, asked = duck
    assert said(web_search(duckduckgo())) == f"[1] {TWO}"
    [(method, url, options)] = asked
    assert (method, url) == ("POST", "https://html.duckduckgo.com/html/")
    assert options["data"]["q"] == "eiffel tower height"


def test_when_duckduckgo_refuses(duck):
    from ddgs.exceptions import DDGSException, RatelimitException, TimeoutException

    answer, _ = duck
    tool = web_search(duckduckgo())
    answer.text = TimeoutException("timed out")
    assert said(tool) == "DuckDuckGo did not answer within 15 s."
    answer.text = RatelimitException("202")
    assert "DuckDuckGo" in said(tool) and "Error" not in said(tool)
    answer.text = DDGSException("ConnectError: dns error")
    assert said(tool) == "DuckDuckGo cannot be reached, or refuses to answer programs for a while."
    answer.text = "<html><body>No results.</body></html>"
    assert said(tool, "xyzzy") == "No results found for 'xyzzy'."
    answer.text, answer.status_code = DUCK, 202
    assert said(tool, "xyzzy") == "No results found for 'xyzzy'."


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"pip install 'qwen-react-agent\[search\]'"):
        duckduckgo()


# ---- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, chosen",
    [
        ({"SERPAPI_KEY": "a", "SERPER_API_KEY": "b", "SEARXNG_URL": "http://c"}, "serpapi"),
        ({"SERPER_API_KEY": " b\n", "GOOGLE_CSE_KEY": "c", "GOOGLE_CSE_ID": "d"}, "serper"),
        ({"SERPAPI_KEY": " ", "GOOGLE_CSE_KEY": "c", "GOOGLE_CSE_ID": "d", "SEARXNG_URL": "http://e"}, "google"),
        ({"SEARXNG_URL": "http://e"}, "searxng"),
        ({"PATH": "/bin"}, "duckduckgo"),
    ],
)
def test_the_first_setting_decides(monkeypatch, settings, chosen):
    asked = []
    for name in ("serpapi", "serper", "google", "searxng", "duckduckgo"):
        monkeypatch.setattr(module, name, lambda *arguments, name=name: asked.append((name, arguments)))
    backend_from(settings)
    assert [name for name, _ in asked] == [chosen]
    assert all(argument == argument.strip() for argument in asked[0][1])


def test_settings_that_cannot_be_used():
    with pytest.raises(InputError, match="GOOGLE_CSE_ID is missing"):
        backend_from({"GOOGLE_CSE_KEY": "c"})
    with pytest.raises(InputError, match="GOOGLE_CSE_KEY is missing"):
        backend_from({"GOOGLE_CSE_ID": "c"})
    with pytest.raises(InputError, match=r"'localhost:8888'.*http://"):
        backend_from({"SEARXNG_URL": "localhost:8888"})


def test_what_the_tool_declares():
    tool = web_search(lambda query, results: [])
    assert tool.name == "web_search" and tool.untrusted and not tool.side_effects
