// The registry's signed documents: their members, and the checks that need no history (docs/protocol.md: Signed documents).
package main

import (
	"crypto/ed25519"
	"strings"
)

// Kind is a kind of document: its typ, its greatest size in characters, and a check of each of its members. Unknown
// members are ignored.
type Kind struct {
	typ     string
	size    int
	members map[string]func(any) bool
}

// lastChanges gives for each service that changed the entry that a document must cover to have the change.
func (c Claims) lastChanges() map[string]int64 {
	found, seqs := map[string]int64{}, c.list("seqs")
	for at, service := range c.list("services") {
		found[text(service)] = c.number("seq")
		if at < len(seqs) {
			found[text(service)], _ = natural(seqs[at])
		}
	}
	return found
}

func hasEntryForEachService(c Claims) bool {
	if _, given := c["seqs"]; !given {
		return true
	}
	for _, each := range c.list("seqs") {
		if entry, _ := natural(each); entry <= c.number("since") || entry > c.number("seq") {
			return false
		}
	}
	return len(c.list("seqs")) == len(c.list("services"))
}

func isNatural(value any) bool { _, ok := natural(value); return ok }
func isBool(value any) bool    { _, ok := value.(bool); return ok }
func isProof(value any) bool   { _, err := decodeProof(value); return err == nil }
func isKid(value any) bool     { _, _, err := splitKid(text(value)); return err == nil }

func isServiceID(value any) bool { _, _, err := splitServiceID(text(value)); return err == nil }

func listOf(check func(any) bool) func(any) bool {
	return func(value any) bool {
		list, ok := value.([]any)
		for _, each := range list {
			ok = ok && check(each)
		}
		return ok
	}
}

func optional(check func(any) bool) func(any) bool {
	return func(value any) bool { return value == missing{} || check(value) }
}

func orNull(check func(any) bool) func(any) bool {
	return func(value any) bool { return value == nil || check(value) }
}

func objectOf(members map[string]func(any) bool) func(any) bool {
	return func(value any) bool {
		object, ok := value.(map[string]any)
		return ok && fits(object, members)
	}
}

// missing is what a check is given for a member that is not there; null is nil.
type missing struct{}

func fits(object map[string]any, members map[string]func(any) bool) bool {
	for member, check := range members {
		value, given := object[member]
		if !given {
			value = missing{}
		}
		if !check(value) {
			return false
		}
	}
	return true
}

func isLedgerKey(value any) bool {
	_, err := ledgerKey(value)
	return err == nil
}

func isPolicy(value any) bool {
	policy, ok := value.(map[string]any)
	allow, ok2 := policy["allow"].(map[string]any)
	if !ok || !ok2 {
		return false
	}
	restricted, given := policy["restricted"]
	for caller, scopes := range allow {
		ok = ok && (caller == "*" || isServiceID(caller)) && listOf(isText)(scopes)
	}
	return ok && (!given && len(policy) == 1 || given && len(policy) == 2 && isBool(restricted))
}

func with(base, more map[string]func(any) bool) map[string]func(any) bool {
	all := map[string]func(any) bool{}
	for _, part := range []map[string]func(any) bool{base, more} {
		for member, check := range part {
			all[member] = check
		}
	}
	return all
}

type checks = map[string]func(any) bool

var (
	frame  = checks{"iss": isText, "sub": isText, "iat": isTime, "exp": isTime}
	placed = with(frame, checks{"seq": isNatural, "checkpoint": isText})
	headed = with(placed, checks{"head": isNatural})
	ended  = objectOf(checks{"kid": isKid, "revoked_at": isTime, "index": isNatural})
	listed = checks{
		"kid": isText, "active_until": isTime, "active_from": isTime, "expires_at": isTime, "index": isNatural,
		"by": isObject, "proof": isProof, "evidence": orNull(isText),
		"state": func(value any) bool { return value == "active" || value == "retired" },
	}

	registryKeys = &Kind{"peerseal-registry+jwt", 64 << 10, with(frame, checks{
		"version": isNatural, "root": isObject, "signing_keys": listOf(isObject), "ledger_key": isLedgerKey,
		"past_ledger_keys": optional(listOf(isLedgerKey)), "urls": listOf(isText),
	})}
	keySet  = &Kind{"jwk-set+jwt", 8 << 20, with(headed, checks{"keys": listOf(isObject), "revoked": listOf(ended)})}
	changes = &Kind{"peerseal-changes+jwt", 1 << 20, with(placed, checks{
		"since": isNatural, "services": listOf(isServiceID), "reset": isBool, "revoked": optional(listOf(isKid)),
		"proof": optional(isProof), "seqs": optional(listOf(isNatural)),
	})}
	policy   = &Kind{"peerseal-policy+jwt", 256 << 10, with(headed, checks{"policy": orNull(isPolicy)})}
	settings = &Kind{"peerseal-domain+jwt", 256 << 10, with(headed, checks{
		"minters": listOf(isServiceID), "issuers": listOf(isObject),
		"derived_scopes": optional(listOf(objectOf(checks{"minter": isServiceID, "from": isText, "to": listOf(isText)}))),
	})}
)

// Claims is the payload of a document whose signature and members were checked.
type Claims map[string]any

func (claims Claims) number(member string) int64 { found, _ := natural(claims[member]); return found }
func (claims Claims) list(member string) []any   { found, _ := claims[member].([]any); return found }
func (claims Claims) text(member string) string  { return text(claims[member]) }

func texts(list []any) []string {
	found := []string{}
	for _, each := range list {
		found = append(found, text(each))
	}
	return found
}

// asDocument turns a fault of a token, key or name into one of the document.
func asDocument(err error) error {
	if err == nil || strings.HasPrefix(codeOf(err), "document_") {
		return err
	}
	return refuse("document_malformed", "%v", err)
}

func (kind *Kind) parse(compact string) (*JWS, error) {
	parsed, err := parseJWS(compact, kind.size)
	if err != nil {
		return nil, asDocument(err)
	}
	if parsed.Typ != kind.typ {
		return nil, refuse("document_wrong_type", "%q", parsed.Typ)
	}
	return parsed, nil
}

// readDocument reads a document of that kind, signed by one of the keys (by kid) for the domain's registry, and in
// force now.
func readDocument(kind *Kind, compact string, signers map[string]*Key, domain string, now int64) (Claims, error) {
	parsed, err := kind.parse(compact)
	if err != nil {
		return nil, err
	}
	signer := signers[parsed.Kid]
	if signer == nil || signer.Alg != parsed.Alg {
		return nil, refuse("document_unknown_signer", "%q", parsed.Kid)
	}
	if !signer.verify(parsed) {
		return nil, refuse("document_bad_signature", "the signature does not verify")
	}
	payload, err := strictObject(parsed.Payload)
	if err != nil {
		return nil, asDocument(err)
	}
	if !fits(payload, kind.members) || (kind == changes && !hasEntryForEachService(payload)) {
		return nil, refuse("document_malformed", "a member is missing, or of another type")
	}
	claims := Claims(payload)
	issued, end := claims.number("iat"), claims.number("exp")
	switch {
	case claims.text("iss") != domain+"/registry":
		return nil, refuse("document_wrong_issuer", "%q", claims.text("iss"))
	case issued > now+30:
		return nil, refuse("document_from_future", "is a clock wrong?")
	case end <= issued || now >= end+30:
		return nil, refuse("document_expired", "is a clock wrong?")
	}
	return claims, nil
}

// Root is the registry keys document: which keys sign for the registry.
type Root struct {
	Domain     string
	Version    int64
	Signers    map[string]*Key // by kid
	LedgerKeys []ed25519.PublicKey
}

// readRegistryKeys reads the root's document, believed by the pin. Its root key is in the payload, which is read before
// the signature is checked.
func readRegistryKeys(compact, pin string, now int64) (*Root, error) {
	parsed, err := registryKeys.parse(compact)
	if err != nil {
		return nil, err
	}
	payload, err := strictObject(parsed.Payload)
	if err != nil {
		return nil, asDocument(err)
	}
	jwk, _ := payload["root"].(map[string]any)
	root, err := readKey(jwk)
	if err != nil {
		return nil, asDocument(err)
	}
	if root.Thumbprint != pin {
		return nil, refuse("document_wrong_root", "the root key is %s", root.Thumbprint)
	}
	owner, thumbprint, err := splitKid(parsed.Kid)
	domain, service, err2 := splitServiceID(owner)
	if err != nil || err2 != nil {
		return nil, refuse("document_wrong_issuer", "%q", parsed.Kid)
	}
	signers := map[string]*Key{}
	if thumbprint == pin {
		signers[parsed.Kid] = root
	}
	claims, err := readDocument(registryKeys, compact, signers, domain, now)
	switch {
	case err != nil:
		return nil, err
	case service != "registry":
		return nil, refuse("document_wrong_issuer", "%q is no registry", owner)
	case claims.text("sub") != domain:
		return nil, refuse("document_wrong_subject", "%q", claims.text("sub"))
	}
	found := &Root{Domain: domain, Version: claims.number("version"), Signers: map[string]*Key{}}
	for _, each := range claims.list("signing_keys") {
		key, err := readKey(each.(map[string]any))
		if err != nil {
			return nil, asDocument(err)
		}
		found.Signers[owner+"/"+key.Thumbprint] = key
	}
	for _, each := range append([]any{claims["ledger_key"]}, claims.list("past_ledger_keys")...) {
		key, _ := ledgerKey(each) // was checked with the members
		found.LedgerKeys = append(found.LedgerKeys, key)
	}
	return found, nil
}

func ledgerKey(value any) (ed25519.PublicKey, error) {
	jwk, _ := value.(map[string]any)
	octets, err := decode(text(jwk["x"]))
	if err != nil || jwk["kty"] != "OKP" || jwk["crv"] != "Ed25519" || len(octets) != ed25519.PublicKeySize {
		return nil, refuse("malformed_token", "not an Ed25519 key")
	}
	return octets, nil
}

// ListedKey is a key in a key set.
type ListedKey struct {
	*Key
	Kid, State                                string
	ActiveFrom, ActiveUntil, ExpiresAt, Index int64
	By, Evidence                              any
	Proof                                     []hash
}

// keysOf gives the keys of a key set.
func keysOf(claims Claims) (map[string]*ListedKey, error) {
	owner := claims.text("sub")
	for _, each := range claims.list("revoked") {
		if of, _, _ := splitKid(text(each.(map[string]any)["kid"])); of != owner {
			return nil, refuse("document_malformed", "a revoked key of another service")
		}
	}
	keys := map[string]*ListedKey{}
	for _, each := range claims.list("keys") {
		members := Claims(each.(map[string]any))
		key, err := readKey(members)
		if err != nil {
			return nil, asDocument(err)
		}
		kid := members.text("kid")
		if !fits(members, listed) || kid != owner+"/"+key.Thumbprint {
			return nil, refuse("document_malformed", "a key's members are wrong")
		}
		proof, _ := decodeProof(members["proof"]) // was checked with the members
		keys[kid] = &ListedKey{
			Key: key, Kid: kid, State: members.text("state"), ActiveFrom: members.number("active_from"),
			ActiveUntil: members.number("active_until"), ExpiresAt: members.number("expires_at"),
			Index: members.number("index"), By: members["by"], Evidence: members["evidence"], Proof: proof,
		}
	}
	return keys, nil
}
