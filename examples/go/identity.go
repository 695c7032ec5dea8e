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
	us := &Identity{ID: domain + "/" + service, Service: service, registry: registry}
	if us.private, err = loadOrMake(filepath.Join(folder, service+".pem")); err != nil {
		return nil, err
	}
	point, err := us.private.PublicKey.Bytes() // the byte 04, x and y
	if err != nil {
		return nil, err
	}
	jwk := map[string]any{"kty": "EC", "crv": "P-256", "x": encode(point[1:33]), "y": encode(point[33:])}
	if us.key, err = readKey(jwk); err != nil {
		return nil, err
	}
	us.Kid = us.ID + "/" + us.key.Thumbprint
	body := map[string]any{"proof": us.proof(domain + "/registry")}
	if joinToken != "" {
		token, err := parseJoinToken(joinToken)
		if err != nil {
			return nil, err
		}
		body["join"] = map[string]any{"id": token.ID, "mac": token.mac(body["proof"].(string))}
	}
	registry.Headers = func(method, target string) (map[string]string, error) {
		return map[string]string{"Authorization": "Bearer " + us.Sign("registry", method, target, nil, nil)}, nil
	}
	return us, us.register(canonical(body))
}

func (us *Identity) register(body []byte) error {
	url := us.registry.URL + "/v1/services/" + us.Service + "/keys"
	answer, err := client.Post(url, "application/json", bytes.NewReader(body))
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
func (us *Identity) proof(audience string) string {
	now := us.registry.Now()
	return us.jws("peerseal-proof+jwt", map[string]any{
		"iss": us.ID, "aud": audience, "iat": now, "exp": now + 60, "jti": newJTI(), "jwk": us.key.JWK,
	})
}

// Sign makes the token for one attempt of one request: sign again for each retry. The token binds the headers.
func (us *Identity) Sign(audience, method, target string, body []byte, headers map[string]string) string {
	if !strings.Contains(audience, "/") {
		audience = strings.TrimSuffix(us.ID, us.Service) + audience
	}
	if headers == nil {
		headers = map[string]string{}
	}
	now := us.registry.Now()
	return us.jws("peerseal-request+jwt", map[string]any{
		"iss": us.ID, "sub": us.ID, "aud": audience, "iat": now, "nbf": now, "exp": now + 60, "jti": newJTI(),
		"method": method, "target_digest": digest([]byte(target)), "content_digest": digest(body), "headers": headers,
	})
}

// Call makes one signed call. No redirect is followed.
func (us *Identity) Call(audience, method, address string, body []byte) (*http.Response, error) {
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
	request.Header.Set("Authorization", "Bearer "+us.Sign(audience, method, target, body, headers))
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
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	return private, os.WriteFile(path, text, 0o600)
}
