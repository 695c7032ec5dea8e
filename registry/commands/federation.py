"""``peerseal-registry federation …``: which foreign trust domains the own services may believe, each under the root
that its operators name."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

from peerseal.audit.entry_words import terms_in_words
from peerseal.errors import DocumentRefused
from peerseal.protocol.documents.federation import FederatedDomain, Federation
from peerseal.protocol.documents.registry_keys import RegistryKeys, read_registry_keys
from peerseal.protocol.names import check_service, check_thumbprint, check_trust_domain
from peerseal.protocol.policies import ANYONE, scopes_from
from peerseal.runtime.terminal import folded, on_terminal, say
from peerseal.transport.fetch import HttpFetcher
from registry.commands.common import json_option, operator_client, read_file, show, show_rows
from registry.commands.operator_client import OperatorClient, registry_keys_at
from registry.domain.federation import federation_from, with_domain, with_second_root, without
from registry.services.documents.policies import Setting

F = TypeVar("F", bound=Callable[..., Any])

_STANDARD = "-"
"""Standard input, or standard output, in the place of a file."""


class Terms(NamedTuple):
    """What the options of a command say of a foreign domain: the URLs of its registry, the thumbprint of its root where
    one was told, and the parts of the domain that are let in. Where none of the latter is named, those in force stay,
    unless it is ``unlimited``. With ``overlap`` the root is a second one. ``unchecked`` asks no registry."""

    urls: tuple[str, ...]
    pin: str | None
    services: frozenset[str] | None
    scopes: frozenset[str] | None
    transactions: bool
    unlimited: bool
    overlap: bool
    unchecked: bool

    @property
    def keeps_limits(self) -> bool:
        """Whether limits that are in force stay."""
        return not self.unlimited and (self.services, self.scopes, self.transactions) == (None, None, False)

    def domain(self, name: str, urls: Sequence[str], root: str) -> FederatedDomain:
        """The foreign domain on these terms. Raises InvalidName or MalformedToken."""
        limits = self.services, self.scopes, self.transactions
        new = FederatedDomain(check_trust_domain(name), tuple(urls), check_thumbprint(root), *limits)
        return FederatedDomain.from_json(new.to_json())

    def check_urls(self, domain: str, root: str) -> None:
        """Ask the registry at each URL that was typed, unless it is ``unchecked``. Raises DocumentRefused or
        FetchError."""
        for url in () if self.unchecked else self.urls:
            keys = read_registry_keys(registry_keys_at(HttpFetcher([url])), pin=root, now=time.time())
            if keys.subject != domain:
                raise DocumentRefused("document_wrong_subject", f"{url} is of {keys.subject}, expected {domain}")


def _registry_option(command: F) -> F:
    """``--registry``, as ``at``: `url_option` under another name, because ``--url`` is the foreign registry's."""
    text = "Call the own registry at this URL, with the token in PEERSEAL_OPERATOR_TOKEN, not this host's database."
    return click.option("--registry", "at", metavar="URL", help=text)(command)


def _terms_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of `Terms`, as ``terms``."""

    @click.option("--url", "urls", metavar="URL", multiple=True, help="Its registry, or a mirror; may be repeated.")
    @click.option("--pin", metavar="PIN", help="The thumbprint of its root, as its operators told it.")
    @click.option(
        "--service",
        "services",
        metavar="NAME",
        multiple=True,
        help="Let in this service alone; may be repeated.  [default: as before, or all]",
    )
    @click.option("--scopes", metavar="SCOPES", help="Let in these scopes alone.  [default: as before, or all]")
    @click.option("--transactions", is_flag=True, help="Let its transactions and events in, with --scopes.")
    @click.option("--unlimited", is_flag=True, help="Drop the limits in force: all services and all scopes.")
    @click.option("--overlap", is_flag=True, help="Believe this root, too, while the domain replaces its root.")
    @click.option("--unchecked", is_flag=True, help="Do not ask at --url now, which this host may not reach.")
    @wraps(command)
    def with_terms(*, services: tuple[str, ...], scopes: str | None, **others: Any) -> None:
        named = frozenset(check_service(name) for name in services) if services else None
        most = None if scopes is None else scopes_from(scopes.split())
        options = {name: others.pop(name) for name in Terms._fields if name in others}
        terms = Terms(services=named, scopes=most, **options)
        _check_limits(terms)
        command(terms=terms, **others)

    return with_terms


def _check_limits(terms: Terms) -> None:
    """Raises click.UsageError for limits that exclude each other, or mean nothing."""
    limited = bool(terms.services or terms.scopes is not None or terms.transactions)
    if terms.overlap and (limited or terms.unlimited):
        raise click.UsageError("--overlap excludes limits: the domain may do the same under both roots")
    if terms.unlimited and limited:
        raise click.UsageError("--unlimited excludes --service, --scopes and --transactions: these are limits")
    if terms.scopes is not None and ANYONE in terms.scopes:
        raise click.UsageError(
            "--scopes '*' would name one scope, called *: leave --scopes out for all scopes, with --unlimited or "
            "another limit where limits are in force"
        )
    if terms.transactions and not terms.scopes:
        raise click.UsageError("--transactions needs --scopes: a transaction crosses with named scopes alone")


@click.group()
def federation() -> None:
    """Foreign trust domains that the services of this one may believe.

    Each side decides for itself: two domains that call each other run `export` and `accept` on both sides.
    """


@federation.command("add")
@click.argument("domain")
@_terms_options
@_registry_option
@json_option
def add(domain: str, terms: Terms, at: str | None, as_json: bool) -> None:
    """Believes DOMAIN under the root with the thumbprint --pin, or replaces its URLs, and its limits where it names
    any.

    Which of its services may call which of ours is for policies and code to say.

    \b
    peerseal-registry federation add partner.example --pin PIN \\
      --url https://registry.partner.example --service billing
    peerseal-registry federation add partner.example --pin NEW \\
      --url https://new.partner.example --overlap
    """
    if not terms.urls or terms.pin is None:
        raise click.UsageError("--url and --pin are needed: they say where its registry is, and which root to believe")
    new = terms.domain(domain, terms.urls, terms.pin)
    terms.check_urls(domain, new.root)
    _added(_client(at), new, terms, as_json)


@federation.command("list")
@_registry_option
@json_option
def list_domains(at: str | None, as_json: bool) -> None:
    """Lists the foreign trust domains that are believed."""
    found = _client(at, "; the signed document is public: curl URL/v1/federation.jwt | peerseal verify -").federation()
    if as_json:
        show(_members(found), as_json, "")
    elif found.value.domains:
        rows = [_row(one) for one in found.value.domains]
        show_rows(rows, False, ("domain", "root", "services", "scopes", "transactions", "urls"))
    else:
        say("no foreign trust domain is believed")


@federation.command("remove")
@click.argument("domain")
@click.option("--root", metavar="PIN", help="Remove this one of two roots alone, at the end of an overlap.")
@_registry_option
@json_option
def remove(domain: str, root: str | None, at: str | None, as_json: bool) -> None:
    """Takes the trust in DOMAIN away: within 2 seconds, services that follow the registry refuse its keys."""
    client = _client(at)
    found = client.federation()
    done = client.replace_federation(without(found.value, check_trust_domain(domain), root), found.seq)
    left = done.value.of(domain)
    text = f"entry {done.seq}: {domain} is believed under the root {left[0].root} alone" if left else None
    show(_members(done), as_json, folded(text or f"entry {done.seq}: {domain} is not believed any more"))


@federation.command("export")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True), default=_STANDARD)
@_registry_option
@json_option
def export(file: str, at: str | None, as_json: bool) -> None:
    """Writes to FILE (- for standard output) what the other side needs to `accept` this domain: the root-signed
    registry keys document, which is public.

    Tell the thumbprint of the root over another channel than the file, for example at the telephone.
    """
    jws = _client(at).registry_keys()
    keys = read_registry_keys(jws, pin=None, now=time.time())
    members = {"domain": keys.subject, "root": keys.root.thumbprint, "urls": list(keys.urls), "document": jws}
    if file != _STANDARD:
        Path(file).write_text(f"{jws}\n", encoding="ascii")
    elif not as_json:
        say(jws)
    text = [f"trust domain {keys.subject}, root {keys.root.thumbprint}"]
    if not keys.urls:
        text.append("the document names no URL of the registry: tell one, for --url of `accept`")
    if as_json:
        show(members, as_json, "")
    else:
        say(*text, error=file == _STANDARD)


@federation.command("accept")
@click.argument("source")
@_terms_options
@_registry_option
@json_option
def accept(source: str, terms: Terms, at: str | None, as_json: bool) -> None:
    """Believes the domain that SOURCE is from: a file of `export`, - for standard input, or the URL of its registry.

    The thumbprint of its root is compared with --pin, or with the one that you type in: as its operators told it over
    another channel. Limits that are in force stay, unless others are named.

    \b
    peerseal-registry federation accept partner.jwt --service billing
    peerseal-registry federation accept https://registry.partner.example \\
      --pin PIN
    """
    over_http = source.startswith(("https://", "http://"))
    jws = registry_keys_at(HttpFetcher([source])) if over_http else _read(source)
    keys = read_registry_keys(jws, pin=None, now=time.time())
    _compare(keys, _told(keys.subject) if terms.pin is None else terms.pin)
    urls = terms.urls or keys.urls or ((source,) if over_http else ())
    if not urls:
        raise click.UsageError(f"{source} names no URL of the registry of {keys.subject}: --url is needed")
    new = terms.domain(keys.subject, urls, keys.root.thumbprint)
    terms.check_urls(new.domain, new.root)
    _added(_client(at), new, terms, as_json)


def _compare(keys: RegistryKeys, told: str) -> None:
    """Raises DocumentRefused where the thumbprints differ."""
    if keys.root.thumbprint != told:
        raise DocumentRefused(
            "document_wrong_root",
            f"the root of {keys.subject} is {keys.root.thumbprint} here, and {told} as its operators told it: do not "
            "accept it, and ask them",
        )


def _told(domain: str) -> str:
    """The thumbprint that the operator types in. Raises click.UsageError without a terminal."""
    if not (sys.stdin.isatty() and on_terminal()):
        raise click.UsageError("--pin is needed: the thumbprint of its root, as its operators told it")
    return str(click.prompt(f"Thumbprint of the root of {domain}, as its operators told it")).strip()


def _read(source: str) -> str:
    """The document in a file. Raises ConfigurationError."""
    largest = RegistryKeys.MAX_SIZE + 1
    content = sys.stdin.buffer.read(largest) if source == _STANDARD else read_file(Path(source), largest)
    return content.decode("ascii", "replace").strip()


def _client(at: str | None, instead: str = "") -> OperatorClient:
    return operator_client(at, option="--registry", instead=instead)


def _added(client: OperatorClient, new: FederatedDomain, terms: Terms, as_json: bool) -> None:
    found = client.federation()
    before = found.value.of(new.domain)
    if before and terms.keeps_limits:
        new = replace(before[0], urls=new.urls, root=new.root)
    second = partial(with_second_root, domain=new.domain, urls=new.urls, root=new.root)
    wanted = second(found.value) if terms.overlap else with_domain(found.value, new)
    own = read_registry_keys(client.registry_keys(), pin=None, now=time.time())
    # checked here: a refusal over HTTP has a code and no detail
    federation_from(wanted.to_json(), own.subject, own.root.thumbprint)
    done = client.replace_federation(wanted, found.seq)
    sentences = [f"entry {done.seq}: {new.domain} is believed under the root {new.root}: {terms_in_words(new)}"]
    show(_members(done), as_json, "\n".join(map(folded, [*sentences, *_changed(before, new)])))
    if new.transactions and new.services is not None:
        say(
            f"note: a transaction counts only where the service that mints it is let in, too: --service must name the"
            f" minters of {new.domain}",
            error=True,
        )


def _changed(before: Sequence[FederatedDomain], new: FederatedDomain) -> Iterator[str]:
    """What is no longer as it was, in sentences."""
    if before and terms_in_words(before[0]) != terms_in_words(new):
        yield f"before: {terms_in_words(before[0])}"
    for one in before:
        if one.root == new.root and one.urls != new.urls:
            yield f"asked at {', '.join(new.urls)}; before: {', '.join(one.urls)}"


def _members(found: Setting[Federation]) -> dict[str, Any]:
    return {"entry": found.seq, **found.value.to_json()}


def _row(one: FederatedDomain) -> dict[str, str]:
    return {
        "domain": one.domain,
        "root": one.root,
        "services": "all" if one.services is None else " ".join(sorted(one.services)) or "none",
        "scopes": "all" if one.scopes is None else " ".join(sorted(one.scopes)) or "none",
        "transactions": "yes" if one.transactions else "no",
        "urls": " ".join(one.urls),
    }
