// For which user a chain of calls is made: the token that goes along with each of them (docs/protocol.md: Transaction
// token).
package main

import (
	"crypto/sha256"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	transactionType     = "txntoken+jwt"
	transactionLifetime = 900
)

var (
	scopePattern      = regexp.MustCompile(`\A[!#-[\]-~]{1,100}\z`)
	idPattern         = regexp.MustCompile(`\A[!-~]{1,200}\z`)
	transactionClaims = checks{
		"iss": isText, "aud": isText, "sub": isUser, "scope": areScopes, "tctx": isSmall, "rctx": isSmall, "req_wl": isText,
		"iat": isTime, "exp": isTime, "txn": func(value any) bool { return idPattern.MatchString(text(value)) },
	}
)

// isUser wants a printable name: it stands in logs.
func isUser(value any) bool {
	name := text(value)
	unprintable := func(r rune) bool { return !unicode.IsPrint(r) }
	return name != "" && utf8.RuneCountInString(name) <= 512 && !strings.ContainsFunc(name, unprintable)
}

func areScopes(value any) bool {
	scopes := scopesIn(text(value))
	for at, scope := range scopes {
		if !scopePattern.MatchString(scope) || slices.Contains(scopes[:at], scope) {
			return false
		}
	}
	return isText(value)
}

func scopesIn(spaced string) []string {
	if spaced == "" {
		return nil
	}
	return strings.Split(spaced, " ")
}

func isSmall(value any) bool { return isObject(value) && len(canonical(value)) <= 1024 }

// Transaction is a proven transaction: what any service may do in it, and for which user. Token goes along unchanged.
type Transaction struct {
	ID, User, Token string
	Scopes          []string
	Claims          Claims
}

// transactionHash is the hash by which a request token binds a transaction token.
func transactionHash(token string) string {
	sum := sha256.Sum256([]byte(token))
	return encode(sum[:])
}

// boundTransaction is step 9: the transaction of a request, nil where it has none. Whatever is wrong with the token is
// refused as bad_transaction_token; settings or a key that cannot be had now are trust_unavailable.
func (v *Verifier) boundTransaction(claims Claims, headers map[string]string) (*Transaction, error) {
	_, binds := claims["tth"]
	token, sent := valueOf(headers, "txn-token")
	switch {
	case !binds && !sent:
		return nil, nil
	case !binds || !sent || transactionHash(token) != claims.text("tth"):
		return nil, refuse("bad_transaction_token", "it is not the one that the request token binds")
	}
	found, err := v.readTransaction(token)
	if err != nil && codeOf(err) != "trust_unavailable" {
		err = refuse("bad_transaction_token", "%v", err)
	}
	return found, err
}

func (v *Verifier) readTransaction(token string) (*Transaction, error) {
	parsed, err := parseJWS(token, maxToken)
	if err != nil {
		return nil, err
	}
	payload, err := strictObject(parsed.Payload)
	if err != nil {
		return nil, err
	}
	minter, err := ownerIn(parsed, transactionType)
	if err != nil {
		return nil, err
	}
	if !fits(payload, transactionClaims) || len(payload) != len(transactionClaims) {
		return nil, refuse("malformed_token", "a claim is missing, unknown, or of another type")
	}
	settings, err := v.Trust.Settings()
	if err != nil {
		return nil, err
	}
	if !slices.Contains(settings.list("minters"), any(minter)) {
		return nil, refuse("caller_not_allowed", "%s is no minter", minter)
	}
	key, err := v.Trust.Key(parsed.Kid) // only now: a caller can name any key
	if err != nil {
		return nil, err
	}
	claims := Claims(payload)
	if err := v.checkTransaction(claims, parsed, key, minter, settings); err != nil {
		return nil, err
	}
	scopes := scopesIn(claims.text("scope"))
	return &Transaction{claims.text("txn"), claims.text("sub"), token, scopes, claims}, nil
}

func (v *Verifier) checkTransaction(claims Claims, parsed *JWS, key *ListedKey, minter string, settings Claims) error {
	domain, err := v.Trust.Domain()
	switch {
	case err != nil:
		return err
	case !key.verify(parsed):
		return refuse("bad_signature", "alg, or the signature")
	case claims.text("iss") != minter:
		return refuse("wrong_issuer", "%q", claims.text("iss"))
	case claims.text("aud") != domain:
		return refuse("wrong_audience", "%q", claims.text("aud"))
	case !derives(settings, claims):
		return refuse("insufficient_scope", "the settings derive no such scope")
	}
	return checkTimes(claims, key, v.Now(), transactionLifetime)
}

// derives says whether the settings derive the scope for the service that asked, if the user's token has not that scope
// itself. Such a scope is the only one.
func derives(settings, claims Claims) bool {
	context := Claims(claims["rctx"].(map[string]any))
	source, derived := context["derived_from"]
	if !derived {
		return true
	}
	granted := func(each any) bool {
		one := Claims(each.(map[string]any))
		to := slices.Contains(one.list("to"), claims["scope"]) // one text is one scope
		return one["minter"] == claims["req_wl"] && one["from"] == source && to
	}
	return isText(context["iss"]) && isText(source) && slices.ContainsFunc(settings.list("derived_scopes"), granted)
}
