// Strict reading of names, encodings and keys, and the digests (docs/protocol.md: Names, Encodings, Keys).
package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// Refused is a refusal with a stable code. Its detail is for the log of this side only.
type Refused struct{ Code, Detail string }

func (r *Refused) Error() string { return r.Code + ": " + r.Detail }

func refuse(code, detail string, arguments ...any) error {
	return &Refused{code, fmt.Sprintf(detail, arguments...)}
}

// codeOf is the code of a refusal, "trust_unavailable" for any other error.
func codeOf(err error) string {
	var refused *Refused
	if errors.As(err, &refused) {
		return refused.Code
	}
	return "trust_unavailable"
}

const label = `[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?`

var (
	name       = label + `(?:\.` + label + `)*`
	serviceID  = regexp.MustCompile(`\A(` + name + `)/(` + name + `)\z`)
	kidPattern = regexp.MustCompile(`\A(.+)/([A-Za-z0-9_-]{42}[AEIMQUYcgkosw048])\z`)
	surrogate  = regexp.MustCompile(`\\(u[dD][89abAB]..\\u[dD][c-fC-F]..|u[dD][89a-fA-F]..|.)`)
	separator  = regexp.MustCompile(`\\(u202[89]|.)`)
	bearer     = regexp.MustCompile(`\A[A-Za-z0-9._~+/-]+=*\z`)
	base64url  = base64.RawURLEncoding.Strict()
)

func encode(octets []byte) string { return base64url.EncodeToString(octets) }

// decode gives the bytes of canonical base64url. Go's decoder passes over line feeds.
func decode(text string) ([]byte, error) {
	octets, err := base64url.DecodeString(text)
	if err != nil || encode(octets) != text {
		return nil, refuse("malformed_token", "not base64url")
	}
	return octets, nil
}

// digest is the SHA-256 of a body's bytes, or of a request-target's, as RFC 9530 writes it.
func digest(octets []byte) string {
	sum := sha256.Sum256(octets)
	return "sha-256=:" + base64.StdEncoding.EncodeToString(sum[:]) + ":"
}

// strictObject gives the JSON object in these bytes; numbers are of type json.Number. Go's decoder takes repeated
// members, invalid UTF-8 and half surrogate pairs, so the tokens are read one by one.
func strictObject(octets []byte) (map[string]any, error) {
	if !json.Valid(octets) || !utf8.Valid(octets) || hasHalfPair(octets) {
		return nil, refuse("malformed_token", "not JSON in UTF-8, or half a surrogate pair")
	}
	decoder := json.NewDecoder(bytes.NewReader(octets))
	decoder.UseNumber()
	value, err := strictValue(decoder, 0)
	if err != nil {
		return nil, refuse("malformed_token", "not strict JSON: %v", err)
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil, refuse("malformed_token", "something follows the value")
	}
	object, ok := value.(map[string]any)
	if !ok {
		return nil, refuse("malformed_token", "not an object")
	}
	return object, nil
}

func hasHalfPair(octets []byte) bool {
	for _, escape := range surrogate.FindAll(octets, -1) {
		if len(escape) == 6 {
			return true // a pair has 12 characters, another escape 2
		}
	}
	return false
}

func strictValue(decoder *json.Decoder, depth int) (any, error) {
	token, err := decoder.Token()
	if err != nil {
		return nil, err
	}
	switch token := token.(type) {
	case json.Number:
		_, err := token.Float64() // out of range
		return token, err
	case json.Delim:
		if depth == 32 {
			return nil, errors.New("nested too deeply")
		}
		if token == '[' {
			return strictList(decoder, depth+1)
		}
		return strictMembers(decoder, depth+1)
	}
	return token, nil
}

func strictList(decoder *json.Decoder, depth int) (any, error) {
	list := []any{}
	for decoder.More() {
		value, err := strictValue(decoder, depth)
		if err != nil {
			return nil, err
		}
		list = append(list, value)
	}
	_, err := decoder.Token()
	return list, err
}

func strictMembers(decoder *json.Decoder, depth int) (any, error) {
	members := map[string]any{}
	for decoder.More() {
		token, err := decoder.Token()
		if err != nil {
			return nil, err
		}
		name := token.(string)
		if _, found := members[name]; found {
			return nil, errors.New("a member is repeated")
		}
		if members[name], err = strictValue(decoder, depth); err != nil {
			return nil, err
		}
	}
	_, err := decoder.Token()
	return members, err
}

// natural is the natural number in a JSON value, which must be written as an integer.
func natural(value any) (int64, bool) {
	number, ok := value.(json.Number)
	if !ok {
		return 0, false
	}
	found, err := number.Int64()
	return found, err == nil && found >= 0
}

func isTime(value any) bool {
	found, ok := natural(value)
	return ok && found <= 253402300799
}

func text(value any) string {
	found, _ := value.(string)
	return found
}

func isText(value any) bool   { _, ok := value.(string); return ok }
func isObject(value any) bool { _, ok := value.(map[string]any); return ok }

// canonical is JSON with names sorted by code points, no white space, and no escapes but those that JSON needs. Go's
// encoder escapes two line separators as well.
func canonical(value any) []byte {
	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer) // sorts the names of a map
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		panic(err) // only for values that no JSON text has
	}
	written := bytes.TrimSuffix(buffer.Bytes(), []byte("\n"))
	return separator.ReplaceAllFunc(written, func(escape []byte) []byte {
		switch string(escape) {
		case `\u2028`:
			return []byte("\u2028")
		case `\u2029`:
			return []byte("\u2029")
		}
		return escape // above all an escaped backslash: what follows it is none
	})
}

// splitServiceID gives the trust domain and the short name.
func splitServiceID(id string) (domain, service string, err error) {
	found := serviceID.FindStringSubmatch(id)
	if found == nil || len(found[1]) > 253 || len(found[2]) > 100 {
		return "", "", refuse("invalid_name", "not a service id")
	}
	return found[1], found[2], nil
}

// splitKid gives the service that owns the key, and the key's thumbprint.
func splitKid(kid string) (owner, thumbprint string, err error) {
	found := kidPattern.FindStringSubmatch(kid)
	if found == nil {
		return "", "", refuse("invalid_name", "not a kid")
	}
	_, _, err = splitServiceID(found[1])
	return found[1], found[2], err
}

// JWS is a compact JWS, taken apart. Its signature is not checked.
type JWS struct {
	Alg, Kid, Typ string
	Payload       []byte
	input         string
	signature     []byte
}

// parseJWS reads a compact JWS; its header holds exactly alg, kid and typ.
func parseJWS(compact string, limit int) (*JWS, error) {
	segments := strings.Split(compact, ".")
	if len(compact) > limit || len(segments) != 3 || segments[1] == "" {
		return nil, refuse("malformed_token", "too long, or not three segments")
	}
	var parts [3][]byte
	for at, segment := range segments {
		var err error
		if parts[at], err = decode(segment); err != nil {
			return nil, err
		}
	}
	header, err := strictObject(parts[0])
	if err != nil {
		return nil, err
	}
	if len(header) != 3 || !isText(header["alg"]) || !isText(header["kid"]) || !isText(header["typ"]) {
		return nil, refuse("malformed_token", "the header must hold exactly alg, kid and typ")
	}
	input := segments[0] + "." + segments[1]
	return &JWS{text(header["alg"]), text(header["kid"]), text(header["typ"]), parts[1], input, parts[2]}, nil
}

// bearerToken is the token in the values of the Authorization header, which may come twice.
func bearerToken(values []string) (string, error) {
	value := strings.Trim(strings.Join(values, ", "), " \t")
	scheme, rest, _ := strings.Cut(value, " ")
	rest = strings.TrimLeft(rest, " ")
	switch {
	case strings.Contains(value, ","):
		return "", refuse("malformed_token", "two values, or a comma")
	case !strings.EqualFold(scheme, "bearer"):
		return "", refuse("missing_token", "no bearer token")
	case !bearer.MatchString(rest):
		return "", refuse("malformed_token", "not a token")
	}
	return rest, nil
}

// Key is a public key with its one algorithm.
type Key struct {
	Alg, Thumbprint string
	JWK             map[string]any // the required members (RFC 7638 section 3.2)
	public          crypto.PublicKey
}

// readKey reads a public key that a service may have.
func readKey(jwk map[string]any) (*Key, error) {
	for _, private := range []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k"} {
		if _, found := jwk[private]; found {
			return nil, refuse("key_private_members", "%s", private)
		}
	}
	var key *Key
	var err error
	switch {
	case jwk["kty"] == "RSA":
		key, err = readRSA(jwk)
	case jwk["kty"] == "EC" && jwk["crv"] == "P-256":
		key, err = readP256(jwk)
	default:
		err = refuse("key_type_unsupported", "neither RSA nor P-256")
	}
	if err != nil {
		return nil, err
	}
	if alg, given := jwk["alg"]; given && alg != key.Alg {
		return nil, refuse("key_alg_mismatch", "this type of key is for %s", key.Alg)
	}
	thumbprint := sha256.Sum256(canonical(key.JWK))
	key.Thumbprint = encode(thumbprint[:])
	return key, nil
}

func readRSA(jwk map[string]any) (*Key, error) {
	n, err := decode(text(jwk["n"]))
	e, err2 := decode(text(jwk["e"]))
	if err != nil || err2 != nil || len(n) == 0 || n[0] == 0 || len(e) == 0 || e[0] == 0 {
		return nil, refuse("key_malformed", "n or e")
	}
	modulus := new(big.Int).SetBytes(n)
	switch {
	case modulus.BitLen() < 2048 || modulus.BitLen() > 8192:
		return nil, refuse("key_size_unsupported", "%d bits", modulus.BitLen())
	case !bytes.Equal(e, []byte{1, 0, 1}):
		return nil, refuse("key_exponent_unsupported", "e is not 65537")
	case modulus.Bit(0) == 0:
		return nil, refuse("key_even_modulus", "the modulus is even")
	}
	public := &rsa.PublicKey{N: modulus, E: 65537}
	return &Key{Alg: "RS256", JWK: map[string]any{"kty": "RSA", "n": jwk["n"], "e": jwk["e"]}, public: public}, nil
}

func readP256(jwk map[string]any) (*Key, error) {
	x, err := decode(text(jwk["x"]))
	y, err2 := decode(text(jwk["y"]))
	if err != nil || err2 != nil || len(x) != 32 || len(y) != 32 {
		return nil, refuse("key_malformed", "x or y")
	}
	public, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), slices.Concat([]byte{4}, x, y))
	if err != nil {
		return nil, refuse("key_off_curve", "not a point of P-256")
	}
	members := map[string]any{"kty": "EC", "crv": "P-256", "x": jwk["x"], "y": jwk["y"]}
	return &Key{Alg: "ES256", JWK: members, public: public}, nil
}

// verify says whether the key, with its own algorithm, signed the JWS.
func (key *Key) verify(jws *JWS) bool {
	sum := sha256.Sum256([]byte(jws.input))
	switch public := key.public.(type) {
	case *rsa.PublicKey:
		return jws.Alg == "RS256" && rsa.VerifyPKCS1v15(public, crypto.SHA256, sum[:], jws.signature) == nil
	case *ecdsa.PublicKey:
		if jws.Alg != "ES256" || len(jws.signature) != 64 {
			return false
		}
		r, s := new(big.Int).SetBytes(jws.signature[:32]), new(big.Int).SetBytes(jws.signature[32:])
		return ecdsa.Verify(public, sum[:], r, s)
	}
	return false
}

// JoinToken is a join token's parts. The secret never leaves this process: only its MAC over a proof does.
type JoinToken struct {
	ID, Pin string
	secret  []byte
}

func parseJoinToken(given string) (*JoinToken, error) {
	parts := strings.Split(strings.TrimSpace(given), ".")
	wrong := refuse("configuration", "the join token cannot be read")
	if len(parts) != 4 || parts[0] != "psj1" {
		return nil, wrong
	}
	id, err := decode(parts[1])
	secret, err2 := decode(parts[2])
	pin, err3 := decode(parts[3])
	if errors.Join(err, err2, err3) != nil || len(id) != 12 || len(secret) != 32 || len(pin) != 32 {
		return nil, wrong
	}
	return &JoinToken{parts[1], parts[3], secret}, nil
}

func (token *JoinToken) mac(proof string) string {
	key := sha256.Sum256(token.secret)
	sum := hmac.New(sha256.New, key[:])
	sum.Write([]byte(proof))
	return encode(sum.Sum(nil))
}
