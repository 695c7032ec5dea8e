// Who calls this service: the eleven steps (docs/protocol.md: Verification).
package main

import (
	"regexp"
	"slices"
	"strings"
	"sync"
)

const (
	requestType     = "peerseal-request+jwt"
	leeway          = 30
	requestLifetime = 300
	maxToken        = 6144
)

var (
	jtiPattern = regexp.MustCompile(`\A[A-Za-z0-9_-]{21}[AQgw]\z`)
	originForm = regexp.MustCompile(`\A/[!-~]*\z`)
	required   = checks{
		"iss": isText, "sub": isText, "aud": isText, "iat": isTime, "nbf": isTime, "exp": isTime, "method": isText,
		"target_digest": isText, "content_digest": isText, "headers": areHeaders,
		"jti": func(value any) bool { return jtiPattern.MatchString(text(value)) },
	}
	further = checks{
		"tth": func(value any) bool { hash, err := decode(text(value)); return err == nil && len(hash) == 32 },
		"ctx": func(value any) bool { return isObject(value) && len(canonical(value)) <= 1024 },
		"cp":  isText,
	}
)

func areHeaders(value any) bool {
	headers, ok := value.(map[string]any)
	for name, value := range headers {
		ok = ok && isText(value) && name == strings.ToLower(name)
	}
	return ok
}

// Trust answers a verifier's questions; a Registry does.
type Trust interface {
	Domain() (string, error)
	Key(kid string) (*ListedKey, error)
	Policy(id string) (map[string]any, error)
	Settings() (Claims, error)
}

// ReplayGuard knows the tokens that were accepted. It is for one process: several need a store that they share, with
// one atomic insert.
type ReplayGuard struct {
	lock sync.Mutex
	seen map[[2]string]int64
}

// Claim says whether the token was not seen before, and remembers it until that time.
func (guard *ReplayGuard) Claim(issuer, jti string, until, now int64) bool {
	guard.lock.Lock()
	defer guard.lock.Unlock()
	if len(guard.seen)%1000 == 999 { // now and then: forget those that have expired
		for key, end := range guard.seen {
			if end < now {
				delete(guard.seen, key)
			}
		}
	}
	key := [2]string{issuer, jti}
	if _, found := guard.seen[key]; found {
		return false
	}
	if guard.seen == nil {
		guard.seen = map[[2]string]int64{}
	}
	guard.seen[key] = until
	return true
}

// Verifier verifies the callers of one service.
type Verifier struct {
	Trust    Trust
	Audience string              // this service's id
	Allow    map[string][]string // callers, by id or "*", and their scopes
	Replay   *ReplayGuard
	Now      func() int64
}

// Request is a request as it was received: Target from the request line, Headers by lower-case names.
type Request struct {
	Method, Target string
	Headers        map[string]string
	Body           func() ([]byte, error) // called after the checks of what is sent before it
	Scope          string                 // empty where the route needs none
}

// Peer is the proven caller, and what it may do here in its transaction, which is nil where it has none.
type Peer struct {
	ID, Kid     string
	Scopes      []string
	Claims      Claims
	Transaction *Transaction
}

// Verify gives the proven caller, or the refusal of the first step that fails.
func (v *Verifier) Verify(token string, request *Request) (*Peer, error) {
	parsed, err := parseJWS(token, maxToken) // 1
	if err != nil {
		return nil, err
	}
	payload, err := strictObject(parsed.Payload)
	if err != nil {
		return nil, err
	}
	claims := Claims(payload)
	caller, err := ownerIn(parsed, requestType) // 2
	if err == nil {
		err = checkShape(payload)
	}
	if err != nil {
		return nil, err
	}
	scopes, err := v.scopesOf(caller) // 3
	if err != nil {
		return nil, err
	}
	key, err := v.Trust.Key(parsed.Kid)
	if err != nil {
		return nil, err
	}
	bound := func(name string) string { return claims.text(name) }
	switch {
	case !key.verify(parsed): // 4, with the one algorithm of the key
		return nil, refuse("bad_signature", "the signature does not verify")
	case bound("iss") != caller || bound("sub") != caller: // 5
		return nil, refuse("wrong_issuer", "%q", bound("iss"))
	case bound("aud") != v.Audience: // 6
		return nil, refuse("wrong_audience", "%q", bound("aud"))
	}
	if err := checkTimes(claims, key, v.Now(), requestLifetime); err != nil { // 7
		return nil, err
	}
	if err := checkBinding(claims, request); err != nil { // 8
		return nil, err
	}
	transaction, err := v.boundTransaction(claims, request.Headers) // 9
	if err != nil {
		return nil, err
	}
	if transaction != nil {
		scopes = common(scopes, transaction.Scopes)
	}
	switch {
	case request.Scope != "" && !slices.Contains(scopes, request.Scope): // 10
		return nil, refuse("insufficient_scope", "%s", request.Scope)
	case !v.Replay.Claim(caller, bound("jti"), claims.number("exp")+leeway, v.Now()): // 11
		return nil, refuse("replayed", "%s", bound("jti"))
	}
	return &Peer{caller, parsed.Kid, scopes, claims, transaction}, nil
}

// scopesOf gives the scopes that the code and the registry's policy both allow.
func (v *Verifier) scopesOf(caller string) ([]string, error) {
	domain, err := v.Trust.Domain()
	if err != nil {
		return nil, err
	}
	local := strings.HasPrefix(caller, domain+"/")
	ours, allowed := v.Allow[caller]
	if !allowed && local {
		ours, allowed = v.Allow["*"]
	}
	if !allowed {
		return nil, refuse("caller_not_allowed", "%s", caller)
	}
	policy, err := v.Trust.Policy(v.Audience)
	if err != nil || policy == nil {
		return ours, err
	}
	allow, _ := policy["allow"].(map[string]any)
	theirs, allowed := allow[caller].([]any)
	if !allowed && local {
		theirs, allowed = allow["*"].([]any)
	}
	if !allowed {
		return nil, refuse("caller_not_allowed", "%s", caller)
	}
	return common(ours, texts(theirs)), nil
}

// common gives the scopes that are in both lists.
func common(ours, theirs []string) []string {
	both := []string{}
	for _, scope := range ours {
		if slices.Contains(theirs, scope) {
			both = append(both, scope)
		}
	}
	return both
}

// ownerIn gives the service that owns the key which a token of that typ names.
func ownerIn(parsed *JWS, typ string) (string, error) {
	if parsed.Typ != typ {
		return "", refuse("wrong_type", "%q", parsed.Typ)
	}
	owner, _, err := splitKid(parsed.Kid)
	if err != nil || (parsed.Alg != "RS256" && parsed.Alg != "ES256") {
		return "", refuse("malformed_token", "alg or kid")
	}
	return owner, nil
}

// checkShape wants all claims, each of its type, and no other: an unchecked claim must not look as if it was checked.
func checkShape(claims map[string]any) error {
	count := len(required)
	for name, check := range further {
		if value, given := claims[name]; given {
			count++
			if !check(value) {
				return refuse("malformed_token", "%s", name)
			}
		}
	}
	if !fits(claims, required) || len(claims) != count {
		return refuse("malformed_token", "a claim is missing, unknown, or of another type")
	}
	return nil
}

// checkTimes takes the longest lifetime in seconds. A token without nbf is good from its iat on.
func checkTimes(claims Claims, key *ListedKey, now, longest int64) error {
	issued, begin, end := claims.number("iat"), claims.number("nbf"), claims.number("exp")
	switch {
	case end <= issued:
		return refuse("expired", "exp is not after iat")
	case end-issued > longest:
		return refuse("lifetime_too_long", "%d s", end-issued)
	case max(issued, begin) > now+leeway:
		return refuse("not_yet_valid", "is a clock wrong?")
	case now >= end+leeway:
		return refuse("expired", "is a clock wrong?")
	case issued < key.ActiveFrom-leeway:
		return refuse("not_yet_valid", "before its key was active")
	case issued > key.ActiveUntil+leeway:
		return refuse("expired", "after its key ended")
	}
	return nil
}

func checkBinding(claims Claims, request *Request) error {
	switch {
	case claims.text("method") != request.Method:
		return refuse("wrong_binding", "method")
	case !originForm.MatchString(request.Target) || claims.text("target_digest") != digest([]byte(request.Target)):
		return refuse("wrong_binding", "target")
	}
	signed := map[string]string{}
	for name, value := range claims["headers"].(map[string]any) {
		signed[name] = text(value)
	}
	for _, headers := range []map[string]string{signed, {"content-type": "", "content-encoding": ""}} {
		for name := range headers {
			ours, given := valueOf(request.Headers, name)
			theirs, bound := valueOf(signed, name)
			if ours != theirs || given != bound {
				return refuse("wrong_binding", "%s", name)
			}
		}
	}
	body, err := request.Body()
	if err == nil && claims.text("content_digest") != digest(body) {
		return refuse("wrong_binding", "body")
	}
	return err
}

func valueOf(headers map[string]string, name string) (string, bool) {
	value, given := headers[name]
	value = strings.Trim(value, " \t")
	return value, given && (value != "" || name != "content-type")
}

// Problem is the answer to a refused request (RFC 9457).
type Problem struct {
	Status  int
	Headers map[string]string
	Body    []byte
}

func problemOf(code string) *Problem {
	headers := map[string]string{"content-type": "application/problem+json", "cache-control": "no-store"}
	status := 401
	switch code {
	case "caller_not_allowed", "insufficient_scope":
		status, headers["www-authenticate"] = 403, `Bearer error="insufficient_scope"`
	case "missing_token":
		headers["www-authenticate"] = "Bearer"
	case "trust_unavailable", "split_view":
		status, headers["retry-after"] = 503, "5"
	case "content_too_large":
		status = 413
	case "content_unreadable":
		status = 400
	case "next_unavailable": // of this example, not of the protocol
		status = 502
	default:
		headers["www-authenticate"] = `Bearer error="invalid_token"`
	}
	return &Problem{status, headers, canonical(map[string]any{"type": "about:blank", "status": status, "code": code})}
}
