import gzip
import socket
import ssl
import struct
import threading
import time
import zlib

import pytest
import requests
import urllib3
from hypothesis import given
from hypothesis import strategies as st

from qwen_agent.errors import ToolError
from qwen_agent.tools.addresses import refusal
from qwen_agent.tools.base import tool
from qwen_agent.tools.http import fetch

PUBLIC = "93.184.216.34"

# Made for these tests, valid from 2020 to 2120: a certificate authority, and one certificate of it for secure.test.
AUTHORITY = """-----BEGIN CERTIFICATE-----
MIIBVTCB/aADAgECAgEBMAoGCCqGSM49BAMCMBIxEDAOBgNVBAMMB1Rlc3QgQ0Ew
IBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMBIxEDAOBgNVBAMMB1Rl
c3QgQ0EwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAQ2wqaOu4hGS2eit2xNwzyl
V1Uiwbqgd8hdVX45wXsk33LyDjcKPvj7BB0QOwJzxyACipR+GMzddBp5GOwBraFL
o0IwQDAPBgNVHRMBAf8EBTADAQH/MA4GA1UdDwEB/wQEAwICBDAdBgNVHQ4EFgQU
AaY5OI+vXKEbaV/L6y4V1MX0ii4wCgYIKoZIzj0EAwIDRwAwRAIgZD34jZi//HL3
a/PmNtpSb/A7sszHv6sKvlLPX7tQAF8CIAH0aMMRiOcBYhANuVx35poIhkaWZsaD
OUzfT+acx1a4
-----END CERTIFICATE-----
"""
CERTIFICATE = """-----BEGIN CERTIFICATE-----
MIIBkjCCATegAwIBAgIBAjAKBggqhkjOPQQDAjASMRAwDgYDVQQDDAdUZXN0IENB
MCAXDTIwMDEwMTAwMDAwMFoYDzIxMjAwMTAxMDAwMDAwWjAWMRQwEgYDVQQDDAtz
ZWN1cmUudGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABGQgpqIe2PMe5T0o
l0fd9BzDs+/jlNSW4jbyfNkOW0Boz2JhqtWYLNSQjOocKcO5dSdmad2b4RFEOv52
JynYXaSjeDB2MAwGA1UdEwEB/wQCMAAwDgYDVR0PAQH/BAQDAgeAMBYGA1UdEQQP
MA2CC3NlY3VyZS50ZXN0MB8GA1UdIwQYMBaAFAGmOTiPr1yhG2lfy+suFdTF9Iou
MB0GA1UdDgQWBBSM+ROlHrSSsS08wxO9K5q91L0G3jAKBggqhkjOPQQDAgNJADBG
AiEAuMm6wGVpW7KDVUhFfjEyAdfgWpTpuRwCvOS33tEAwpECIQDu+jDJ12suw/z3
RSGKPadWl7UFegOQbHHP7UqxKb2UkA==
-----END CERTIFICATE-----
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgdZUNuni6B4E6WONA
PskR5nc7ERYErbs0QLWoEglHAaehRANCAARkIKaiHtjzHuU9KJdH3fQcw7Pv45TU
luI28nzZDltAaM9iYarVmCzUkIzqHCnDuXUnZmndm+ERRDr+dicp2F2k
-----END PRIVATE KEY-----
"""


def error(*arguments, **options) -> str:
    with pytest.raises(ToolError) as caught:
        fetch(*arguments, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250
    return str(caught.value)


# ---- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address, word",
    [
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("::1", "loopback"),
        ("0.0.0.0", "unspecified"),
        ("::", "unspecified"),
        ("10.1.2.3", "private"),
        ("172.16.0.1", "private"),
        ("172.31.255.255", "private"),
        ("192.168.1.1", "private"),
        ("fd12:3456::1", "private"),
        ("100.64.0.1", "shared"),
        ("169.254.1.1", "link-local"),
        ("fe80::1", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("169.254.169.254", "metadata"),
        ("168.63.129.16", "metadata"),
        ("100.100.100.200", "metadata"),
        ("fd00:ec2::254", "metadata"),
        ("224.0.0.1", "multicast"),
        ("ff02::1", "multicast"),
        ("255.255.255.255", "reserved"),
        ("192.0.2.1", "reserved"),
        ("198.18.0.1", "reserved"),
        ("::ffff:127.0.0.1", "IPv4"),
        ("::ffff:8.8.8.8", "IPv4"),
        ("::127.0.0.1", "reserved"),
        ("64:ff9b::7f00:1", "NAT64"),
        ("64:ff9b::808:808", "NAT64"),
        ("64:ff9b:1::a00:1", "NAT64"),
        ("2002:7f00:1::", "6to4"),
        ("2002:808:808::1", "6to4"),
        ("2001::1", "Teredo"),
        ("2001:db8::1", "reserved"),
        ("fec0::1", "site-local"),
        ("100::1", "reserved"),
        ("5f00::1", "reserved"),
    ],
)
def test_addresses_that_are_not_public(address, word):
    assert word in refusal(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "172.32.0.1", "100.128.0.1", "2606:4700::1111"])
def test_addresses_that_are_public(address):
    assert refusal(address) == ""


@given(st.ip_addresses())
def test_nothing_that_python_calls_private_is_allowed(address):
    if not address.is_global or address.is_multicast:
        assert refusal(str(address))


def test_what_a_user_may_allow():
    for address in ("127.0.0.1", "::1", "10.0.0.1", "192.168.0.1", "fd12::1", "100.64.0.1"):
        assert refusal(address, allow_private=True) == ""
    for address in (
        "169.254.169.254",
        "168.63.129.16",
        "100.100.100.200",
        "fd00:ec2::254",
        "0.0.0.0",
        "64:ff9b::7f00:1",
    ):
        assert refusal(address, allow_private=True)


# ---- only_public_addresses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "LOCALHOST",
        "localhost.",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0x7f.0x0.0x0.0x1",
        "0177.0.0.1",
        "0177.0.0.01",
        "017700000001",
        "127.000.000.001",
        "0",
        "0.0.0.0",
        "[::1]",
        "[0:0:0:0:0:0:0:1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[64:ff9b:1::7f00:1]",
        "[2002:7f00:1::]",
        "１２７.0.0.1",
        "①②⑦.⓪.⓪.①",
        "127。0。0。1",
        "%31%32%37.0.0.1",
    ],
)
def test_every_spelling_of_loopback_is_refused(server, host):
    server.page("/", "secret")
    for port in ("", ":8080", f":{server.port}"):
        error(f"http://{host}{port}/")
    error(f"http://{host}:{server.port}/", ports=[server.port])
    assert server.asked == []


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "100.64.1.1", "224.0.0.1", "0.0.0.0"])
def test_a_name_that_means_such_an_address_is_refused(internet, address):
    internet.names["innocent.test"] = [[PUBLIC, address]]
    assert address in error("http://innocent.test/")
    assert internet.connected == []


def test_the_connection_goes_to_the_address_that_was_checked(internet, server):
    """Rebinding: the second answer would be this machine."""
    server.page("/", "hello")
    internet.names["rebind.test"] = [[PUBLIC], ["127.0.0.1"]]
    assert fetch("http://rebind.test/").body == b"hello"
    assert internet.asked == ["rebind.test"] and internet.connected == [(PUBLIC, 80)]
    assert "Host: rebind.test\r\n" in server.asked[0]
    assert "loopback" in error("http://rebind.test/")


def test_rebinding_between_redirects(internet, server):
    server.page("/", status="302 Found", Location="http://rebind.test/again")
    internet.names["rebind.test"] = [[PUBLIC], ["127.0.0.1"]]
    assert "loopback" in error("http://rebind.test/")
    assert internet.connected == [(PUBLIC, 80)]


class NameServer:
    """A DNS server on this machine whose answers change from query to query and may not be kept (TTL 0)."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.queries = 0
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                query, asker = self.socket.recvfrom(512)
            except OSError:
                return
            self.queries += 1
            address = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            record = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 0, 4) + socket.inet_aton(address)
            self.socket.sendto(query[:2] + b"\x81\x80" + query[4:6] + b"\0\1\0\0\0\0" + query[12:] + record, asker)

    def resolve(self, host, port, *_, **__):
        """What getaddrinfo does for a name."""
        labels = b"".join(bytes([len(label)]) + label.encode() for label in host.split("."))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            asker.settimeout(5)
            asker.sendto(b"\x12\x34\x01\0\0\1\0\0\0\0\0\0" + labels + b"\0\0\1\0\1", self.socket.getsockname())
            address = socket.inet_ntoa(asker.recv(512)[-4:])
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]


def test_rebinding_by_a_name_server(internet, server, monkeypatch):
    server.page("/", "hello")
    names = NameServer(PUBLIC, "127.0.0.1")
    monkeypatch.setattr(socket, "getaddrinfo", names.resolve)
    assert fetch("http://rebind.test/").body == b"hello"
    assert names.queries == 1 and internet.connected == [(PUBLIC, 80)]
    assert "loopback" in error("http://rebind.test/")
    names.socket.close()


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1/",
        "http://localhost/",
        "//0x7f.1/",
        "http://[::1]/",
        "http://2130706433/",
        "http://[::ffff:7f00:1]/",
    ],
)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_loopback_is_refused(internet, server, location, status):
    server.page("/", status=f"{status} Moved", Location=location)
    internet.names["far.test"] = [[PUBLIC]]
    error("http://far.test/")
    assert internet.connected == [(PUBLIC, 80)]


def test_the_next_address_is_tried_when_one_does_not_answer(internet, server, monkeypatch):
    server.page("/", "hello")
    internet.names["two.test"] = [["93.184.216.33", PUBLIC]]
    connect = internet.connect

    def first_fails(address, *rest, **options):
        if address[0].endswith("33"):
            raise ConnectionRefusedError(111, "Connection refused")
        return connect(address, *rest)

    monkeypatch.setattr(urllib3.util.connection, "create_connection", first_fails)
    assert fetch("http://two.test/").body == b"hello"


@pytest.mark.parametrize(
    "url, part",
    [
        ("", "not a web address"),
        ("example.org", "not a web address"),
        ("//example.org/", "not a web address"),
        ("http://", "not a web address"),
        ("http:///etc/passwd", "not a web address"),
        ("http://a:b/", "not a web address"),
        ("http://a:99999/", "not a web address"),
        ("http://[::1/", "not a web address"),
        ("http://" + "a" * 70 + ".test/", ""),
        ("file:///etc/passwd", "only http"),
        ("ftp://example.org/", "only http"),
        ("gopher://example.org/", "only http"),
        ("httpx://example.org/", "only http"),
        ("http://user:pass@example.org/", "user name"),
        ("http://example.org@127.0.0.1/", "user name"),
        ("http://127.0.0.1\\@example.org/", "backslash"),
        ("http://example.org\t/", "control"),
        ("http://example.org/a b", "%20"),
        ("http://example.org/\r\nHost: x", "control"),
        ("http://example.org/" + "a" * 8000, "longer than 8000"),
        ("http://example.org:22/", "Port 22"),
        ("http://example.org:6379/", "Port 6379"),
    ],
)
def test_addresses_that_are_not_fetched(url, part):
    assert part in error(url, seconds=5)


def test_private_hosts_only_when_allowed_and_only_the_named_one(server):
    server.page("/", "hello")
    server.page("/go", status="302 Found", Location="/")
    server.page("/away", status="302 Found", Location=f"http://localhost:{server.port}/")
    assert error(f"{server.url}/", ports=[server.port]) == (
        "127.0.0.1 is not fetched: its address 127.0.0.1 is loopback, not public."
    )
    assert fetch(f"{server.url}/", allow_private=True).body == b"hello"
    assert fetch(f"{server.url}/go", allow_private=True).url == f"{server.url}/"
    assert "localhost" in error(f"{server.url}/away", allow_private=True)


def test_the_environment_is_not_asked_for_a_proxy_or_keys(server, monkeypatch, tmp_path):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server.page("/", "hello", Set_Cookie="a=b")
    server.page("/go", status="302 Found", Location="/", Set_Cookie="c=d")
    assert fetch(f"{server.url}/go", allow_private=True).body == b"hello"
    assert not any(word in asked for asked in server.asked for word in ("Authorization", "Cookie"))


def test_a_proxy_that_was_asked_for(server):
    server.pages["http://far.test/page"] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
    assert fetch("http://far.test/page", proxy=server.url).body == b"hello"
    assert "Host: far.test" in server.asked[0]
    for host in ("127.0.0.1", "0x7f.1", "localhost", "[::1]", "a.localhost"):
        assert "loopback" in error(f"http://{host}/", proxy=server.url)
    assert len(server.asked) == 1


# ---- TLS -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def secure(server, internet, monkeypatch, tmp_path):
    """The server speaks TLS as secure.test; the names that it was greeted with are kept."""
    (tmp_path / "authority.pem").write_text(AUTHORITY)
    (tmp_path / "certificate.pem").write_text(CERTIFICATE)
    monkeypatch.setattr(requests.adapters, "DEFAULT_CA_BUNDLE_PATH", str(tmp_path / "authority.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate.pem")
    server.greeted = []
    context.sni_callback = lambda _, name, __: server.greeted.append(name)
    server.wrap = lambda connection: context.wrap_socket(connection, server_side=True)
    internet.names |= {name: [[PUBLIC]] for name in ("secure.test", "other.test")}
    return server


def test_the_name_is_kept_in_tls(secure, internet):
    secure.page("/", "hello")
    assert fetch("https://secure.test/").body == b"hello"
    assert secure.greeted == ["secure.test"] and internet.connected == [(PUBLIC, 443)]
    assert "Host: secure.test\r\n" in secure.asked[0]


def test_a_certificate_for_another_name_is_refused(secure):
    secure.page("/", "hello")
    assert (
        error("https://other.test/") == "other.test cannot be trusted: its certificate or its encryption is not valid."
    )
    assert secure.asked == []


def test_an_unknown_authority_is_refused(secure, monkeypatch):
    monkeypatch.setattr(requests.adapters, "DEFAULT_CA_BUNDLE_PATH", requests.certs.where())
    assert "cannot be trusted" in error("https://secure.test/")


def test_what_is_sent_is_not_shown_by_a_redirect_to_http(secure):
    secure.page("/", status="302 Found", Location="http://secure.test/plain")
    assert "from https to http" in error("https://secure.test/", headers={"X-Api-Key": "k"})


# ---- nothing_is_carried_along ---------------------------------------------------------------------------------------


def test_keys_stay_with_the_first_server(internet, server):
    internet.names |= {"one.test": [[PUBLIC]], "two.test": [[PUBLIC]]}
    server.page("/", status="302 Found", Location="/same")
    server.page("/same", status="302 Found", Location="http://two.test/other")
    server.page("/other", status="302 Found", Location="http://one.test/back")
    server.page("/back", "done")
    headers = {"Authorization": "Bearer k", "X-API-KEY": "k", "Cookie": "k"}
    assert fetch("http://one.test/", headers=headers).body == b"done"
    assert ["Bearer k" in asked for asked in server.asked] == [True, True, False, False]
    assert not any(name in server.asked[2] for name in ("X-API-KEY", "Cookie", "Referer"))


def test_a_body_is_sent_once(internet, server):
    internet.names |= {"one.test": [[PUBLIC]], "two.test": [[PUBLIC]]}
    server.page("/see", status="303 See Other", Location="/done")
    server.page("/again", status="307 Temporary Redirect", Location="/done")
    server.page("/away", status="308 Permanent Redirect", Location="http://two.test/done")
    server.page("/done", "done")
    fetch("http://one.test/see", method="POST", json={"q": 1})
    fetch("http://one.test/again", method="POST", json={"q": 1})
    assert [asked.split(" ")[0] for asked in server.asked] == ["POST", "GET", "POST", "POST"]
    assert server.asked[3].endswith('{"q": 1}')
    assert "two.test" in error("http://one.test/away", method="POST", json={"q": 1})
    assert len(server.asked) == 5


def test_redirects_end(server):
    server.page("/loop", status="302 Found", Location="/loop")
    assert error(f"{server.url}/loop", allow_private=True) == "127.0.0.1 redirects more than 5 times."
    assert len(server.asked) == 6


@pytest.mark.parametrize("location", ["file:///etc/passwd", "javascript:alert(1)", "http://a:b/", "ftp://127.0.0.1/"])
def test_a_redirect_to_nowhere(server, location):
    server.page("/", status="302 Found", Location=location)
    error(f"{server.url}/", allow_private=True)


def test_a_redirect_as_people_write_them(server):
    server.page("/", status="302 Found", Location="a b/ü?x=é".encode().decode("latin-1"))
    server.page("/a%20b/%C3%BC", "done")
    assert fetch(f"{server.url}/", allow_private=True).body == b"done"


def test_errors_do_not_show_the_address(server):
    server.pages["/secret-key"] = lambda stream: None
    assert "secret-key" not in error(f"{server.url}/secret-key?key=secret-key", allow_private=True)
    server.close()
    closed = socket.create_server(("127.0.0.1", 0))
    port = closed.getsockname()[1]
    closed.close()
    assert error(f"http://127.0.0.1:{port}/secret-key", allow_private=True) == (
        "127.0.0.1 cannot be reached: Connection refused."
    )


@pytest.mark.parametrize("key", ["secret\n", "secret\r\nX: y", "secret\u20ac", "secret\0"])
def test_a_header_that_cannot_be_sent_is_not_shown(server, key):
    server.page("/", "hello")
    try:
        fetch(f"{server.url}/", headers={"X-Api-Key": key}, allow_private=True)
    except ToolError as problem:
        assert "header" in str(problem) and "secret" not in str(problem)
    assert not any("X: y" in asked for asked in server.asked)


def test_a_name_that_does_not_exist(monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert error("http://nowhere.test/") == "There is no host nowhere.test, or its name cannot be resolved now."


# ---- bounded --------------------------------------------------------------------------------------------------------


def drip(head: bytes, piece: bytes = b"x", times: int = 600, pause: float = 0.05):
    """A page that comes so slowly that no single read is late."""

    def write(stream: socket.socket) -> None:
        stream.sendall(head)
        for _ in range(times):
            stream.sendall(piece)
            time.sleep(pause)

    return write


@pytest.mark.parametrize(
    "slow",
    [
        drip(b"HTTP/1.1 200 OK\r\nX: "),
        drip(b"HTTP/1.1 200 OK\r\n\r\n"),
        drip(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"),
        drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"x"),
        drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"A: b\r\n"),
        drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        drip(b"", b"", times=200),
    ],
    ids=["headers", "body", "length", "chunks", "chunk size", "trailers", "continue", "silence"],
)
def test_slow_answers_end_at_the_deadline(server, slow):
    server.pages["/"] = slow
    started = time.monotonic()
    assert error(f"{server.url}/", seconds=1, allow_private=True) == "127.0.0.1 did not answer within 1 s."
    assert 0.9 < time.monotonic() - started < 3


def test_a_slow_greeting_ends_at_the_deadline(internet, server):
    internet.names["secure.test"] = [[PUBLIC]]

    def silent(connection):
        time.sleep(5)
        return connection

    server.wrap = silent
    started = time.monotonic()
    error("https://secure.test/", seconds=1)
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_slow_answers_in_tls_end_at_the_deadline(secure, head):
    secure.pages["/"] = drip(head)
    started = time.monotonic()
    assert error("https://secure.test/", seconds=1) == "secure.test did not answer within 1 s."
    assert 0.9 < time.monotonic() - started < 3


def test_slow_redirects_share_one_deadline(server):
    def write(stream):
        time.sleep(0.4)
        stream.sendall(b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    server.pages["/"] = write
    started = time.monotonic()
    assert "within 1 s" in error(f"{server.url}/", seconds=1, allow_private=True)
    assert time.monotonic() - started < 3


def test_a_slow_name_server_ends_at_the_deadline(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(5) or [])
    started = time.monotonic()
    assert "within 0.5 s" in error("http://slow.test/", seconds=0.5)
    assert time.monotonic() - started < 2


def test_an_endless_body_is_cut(server):
    def endless(stream):
        stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
        while True:
            stream.sendall(b"x" * 65536)

    server.pages["/"] = endless
    answer = fetch(f"{server.url}/", max_bytes=100_000, allow_private=True)
    assert len(answer.body) == 100_000 and answer.truncated


def test_a_body_that_just_fits_is_whole(server):
    server.page("/", b"x" * 100_000)
    answer = fetch(f"{server.url}/", max_bytes=100_000, allow_private=True)
    assert len(answer.body) == 100_000 and not answer.truncated


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_compressed_bomb_is_cut(server, coding):
    """A hundred megabytes in a hundred kilobytes: counted after decompression, and never held."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31 if coding == "gzip" else 15)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(100)) + packer.flush()
    server.page("/", bomb, Content_Encoding=coding)
    answer = fetch(f"{server.url}/", max_bytes=1_000_000, allow_private=True)
    assert len(answer.body) == 1_000_000 and answer.truncated


def test_a_compressed_page_is_unpacked(server):
    server.page("/", gzip.compress(b"hello" * 1000), Content_Encoding="gzip")
    assert fetch(f"{server.url}/", allow_private=True).body == b"hello" * 1000
    server.page("/br", b"\x00", Content_Encoding="br")
    assert "'br'" in error(f"{server.url}/br", allow_private=True)
    server.page("/broken", b"not gzip", Content_Encoding="gzip")
    error(f"{server.url}/broken", allow_private=True)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 16_000_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: aaaaaaaaaaaaaaa\r\n" * 800_000 + b"\r\n",
        b"HTTP/1.1 200 " + b"a" * 16_000_000,
        b"a" * 16_000_000,
        b"\0\xff" * 1000,
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 16_000_000,
        b"HTTP/1.1 302 Found\r\nLocation: http://[\r\n\r\n",
    ],
    ids=[
        "one header",
        "many",
        "status",
        "no HTTP",
        "binary",
        "nothing",
        "length",
        "short",
        "chunk",
        "chunk size",
        "where",
    ],
)
def test_broken_answers_are_errors_in_words(server, head):
    server.pages["/"] = lambda stream: stream.sendall(head)
    if b"-5" in head:  # as if no length were given
        assert fetch(f"{server.url}/", allow_private=True).body == b""
    else:
        error(f"{server.url}/", seconds=5, allow_private=True)


def test_other_kinds_are_not_read(server):
    server.page("/film", b"x" * 1000, kind="video/mp4")
    server.page("/text", "hello", kind="Text/Plain; Charset=UTF-8")
    server.page("/untold", "hello", kind="")
    server.page("/missing", "not here", kind="image/png", status="404 Not Found")
    kinds = ["text/", "application/json"]
    assert error(f"{server.url}/film", media_types=kinds, allow_private=True) == (
        "127.0.0.1 sends video/mp4, which cannot be read here."
    )
    text = fetch(f"{server.url}/text", media_types=kinds, allow_private=True)
    assert (text.media_type, text.charset) == ("text/plain", "UTF-8")
    assert fetch(f"{server.url}/untold", media_types=kinds, allow_private=True).body == b"hello"
    assert fetch(f"{server.url}/missing", media_types=kinds, allow_private=True).status == 404
    assert "Accept: text/*, application/json\r\n" in server.asked[0]


def test_a_cancelled_tool_stops_reading(server):
    ended = threading.Event()

    def endless(stream):
        stream.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while True:
                stream.sendall(b"x" * 1000)
                time.sleep(0.01)
        except OSError:
            ended.set()
            raise

    server.pages["/"] = endless

    @tool(seconds=0.5)
    def get() -> str:
        return str(fetch(f"{server.url}/", max_bytes=10**9, allow_private=True).status)

    assert "timed out" in get.invoke({}).content
    assert ended.wait(5)


def test_nothing_is_left_open(server, recwarn):
    server.page("/", "hello")
    server.page("/go", status="302 Found", Location="/")
    before = threading.active_count()
    for _ in range(20):
        fetch(f"{server.url}/go", allow_private=True)
    time.sleep(0.2)
    assert threading.active_count() <= before + 2
    assert not recwarn.list
