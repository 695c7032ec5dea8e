// Who this service is: its key, its registration, and the tokens that it signs (docs/protocol.md: Registration, Request token).
package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// Identity is a registered service.
type Identity struct {
	ID, Service, Kid string
	path             string // of the private key
	registry         *Registry
	private          *ecdsa.PrivateKey
	key              *Key
}

var asJSON = map[string]string{"content-type": "application/json"}

// join loads or makes the key in that folder, and registers it. The join token may be empty once it is registered: a
// key that is registered already is registered again without harm.
func join(registry *Registry, service, folder, joinToken string) (*Identity, error) {
	domain, err := registry.Domain()
	if err != nil {
		return nil, err
	}
	path := filepath.Join(folder, service+".pem")
	private, err := loadOrMake(path)
	if err != nil {
		return nil, err
	}
	us, err := (&Identity{ID: domain + "/" + service, Service: service, path: path, registry: registry}).with(private)
	if err != nil {
		return nil, err
	}
	body := map[string]any{"proof": us.proof()}
	if joinToken != "" {
		token, err := parseJoinToken(joinToken)
		if err != nil {
			return nil, err
		}
		body["join"] = map[string]any{"id": token.ID, "mac": token.mac(body["proof"].(string))}
	}
	registry.Headers = func(method, target string) (map[string]string, error) {
		return map[string]string{"Authorization": "Bearer " + us.Sign("registry", method, target, nil, nil, "")}, nil
	}
	return us, us.register(canonical(body), "")
}

// Rotate registers another key, for which the present one vouches, and keeps it in place of that. A key is good for 7
// days: do this once a day, and restart the service some time after.
func (us *Identity) Rotate() (*Identity, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	next, err := us.with(private)
	if err != nil {
		return nil, err
	}
	body := canonical(map[string]any{"proof": next.proof()})
	if err := us.register(body, us.Sign("registry", "POST", us.keysPath(), body, asJSON, "")); err != nil {
		return nil, err
	}
	if err := save(us.path+".new", private); err != nil {
		return nil, err
	}
	return next, os.Rename(us.path+".new", us.path)
}

// with is the same service with that key.
func (us *Identity) with(private *ecdsa.PrivateKey) (*Identity, error) {
	point, err := private.PublicKey.Bytes() // the byte 04, x and y
	if err != nil {
		return nil, err
	}
	key, err := readKey(map[string]any{"kty": "EC", "crv": "P-256", "x": encode(point[1:33]), "y": encode(point[33:])})
	if err != nil {
		return nil, err
	}
	next := *us
	next.private, next.key, next.Kid = private, key, us.ID+"/"+key.Thumbprint
	return &next, nil
}

func (us *Identity) keysPath() string { return "/v1/services/" + us.Service + "/keys" }

// register sends a proof, with the token of a key that vouches for it, if there is one.
func (us *Identity) register(body []byte, voucher string) error {
	request, err := http.NewRequest("POST", us.registry.URL+us.keysPath(), bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	if voucher != "" {
		request.Header.Set("Authorization", "Bearer "+voucher)
	}
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	told, err := io.ReadAll(answer.Body)
	if answer.StatusCode != 200 && answer.StatusCode != 201 {
		return fmt.Errorf("not registered: %d %s", answer.StatusCode, told)
	}
	return err
}

// proof shows that we hold the key: its holder asks to register it.
func (us *Identity) proof() string {
	audience := strings.TrimSuffix(us.ID, us.Service) + "registry"
	now := us.registry.Now()
	return us.jws("peerseal-proof+jwt", map[string]any{
		"iss": us.ID, "aud": audience, "iat": now, "exp": now + 60, "jti": newJTI(), "jwk": us.key.JWK,
	})
}

// Sign makes the token for one attempt of one request: sign again for each retry. The token binds the headers, and the
// transaction token that goes along, if there is one.
func (us *Identity) Sign(audience, method, target string, body []byte, headers map[string]string, transaction string) string {
	if !strings.Contains(audience, "/") {
		audience = strings.TrimSuffix(us.ID, us.Service) + audience
	}
	if headers == nil {
		headers = map[string]string{}
	}
	now := us.registry.Now()
	claims := map[string]any{
		"iss": us.ID, "sub": us.ID, "aud": audience, "iat": now, "nbf": now, "exp": now + 60, "jti": newJTI(),
		"method": method, "target_digest": digest([]byte(target)), "content_digest": digest(body), "headers": headers,
	}
	if transaction != "" {
		claims["tth"] = transactionHash(transaction)
	}
	return us.jws(requestType, claims)
}

// Call makes one signed call, in a transaction unless its token is empty. No redirect is followed.
func (us *Identity) Call(audience, method, address string, body []byte, transaction string) (*http.Response, error) {
	request, err := http.NewRequest(method, strings.ReplaceAll(address, " ", "%20"), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	headers := map[string]string{}
	if len(body) > 0 {
		headers = maps.Clone(asJSON)
	}
	for name, value := range headers {
		request.Header.Set(name, value)
	}
	target := (&url.URL{Path: request.URL.Path, RawPath: request.URL.RawPath, RawQuery: request.URL.RawQuery}).RequestURI()
	request.Header.Set("Authorization", "Bearer "+us.Sign(audience, method, target, body, headers, transaction))
	if transaction != "" {
		request.Header.Set("Txn-Token", transaction)
	}
	return client.Do(request)
}

func (us *Identity) jws(typ string, claims map[string]any) string {
	header := map[string]any{"alg": us.key.Alg, "kid": us.Kid, "typ": typ}
	input := encode(canonical(header)) + "." + encode(canonical(claims))
	sum := sha256.Sum256([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, us.private, sum[:])
	if err != nil {
		panic(err) // only where the system has no random numbers
	}
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return input + "." + encode(signature)
}

func newJTI() string {
	octets := make([]byte, 16)
	rand.Read(octets) // never fails
	return encode(octets)
}

func loadOrMake(path string) (*ecdsa.PrivateKey, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return made(path)
	}
	block, _ := pem.Decode(text)
	if err != nil || block == nil {
		return nil, errors.Join(err, fmt.Errorf("%s: no PEM", path))
	}
	found, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	private, ok := found.(*ecdsa.PrivateKey)
	if err != nil || !ok {
		return nil, fmt.Errorf("%s: no EC key", path)
	}
	return private, nil
}

func made(path string) (*ecdsa.PrivateKey, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	return private, save(path, private)
}

func save(path string, private *ecdsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return err
	}
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}
