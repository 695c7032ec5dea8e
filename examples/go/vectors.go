// Runs the test vectors of docs/vectors. The other kinds are for parts that this peer has not.
package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

type facts = map[string]any

// judges has a function for each kind: what an accepted case proves, or the refusal.
var judges = map[string]func(given Claims) (facts, error){
	"base64url": func(given Claims) (facts, error) {
		octets, err := decode(given.text("text"))
		return facts{"hex": hex.EncodeToString(octets)}, err
	},
	"json": func(given Claims) (facts, error) { return strictObject(octets(given, "text")) },
	"canonical-json": func(given Claims) (facts, error) {
		object, err := strictObject(octets(given, "text"))
		return facts{"canonical": encode(canonical(object))}, err
	},
	"content-digest": func(given Claims) (facts, error) {
		return nil, unless(digest(octets(given, "body")) == given.text("digest"), "wrong_binding")
	},
	"target-digest": func(given Claims) (facts, error) {
		target := given.text("target")
		return nil, unless(originForm.MatchString("/"+target) && digest([]byte(target)) == given.text("digest"), "wrong_binding")
	},
	"kid": func(given Claims) (facts, error) {
		owner, thumbprint, err := splitKid(given.text("kid"))
		return facts{"service_id": owner, "thumbprint": thumbprint}, err
	},
	"key":           judgeKey,
	"authorization": judgeAuthorization,
	"join": func(given Claims) (facts, error) {
		token, err := parseJoinToken(given.text("join_token"))
		if err != nil {
			return nil, err
		}
		same := hmac.Equal([]byte(token.mac(given.text("proof"))), []byte(given.text("mac")))
		return facts{"id": token.ID, "pin": token.Pin}, unless(same, "join_refused")
	},
	"refusal": func(given Claims) (facts, error) {
		answer := problemOf(given.text("code"))
		return facts{"status": answer.Status, "headers": answer.Headers}, nil
	},
	"request": func(given Claims) (facts, error) {
		peer, err := judgeRequest(given)
		if err != nil {
			return nil, err
		}
		return facts(peer.Claims), nil
	},
	"transaction": func(given Claims) (facts, error) {
		peer, err := judgeRequest(given)
		if err != nil {
			return nil, err
		}
		return facts(peer.Transaction.Claims), nil
	},
	"registry-keys": func(given Claims) (facts, error) {
		root, err := readRegistryKeys(given.text("document"), given.text("pin"), given.number("now"))
		if err != nil {
			return nil, err
		}
		kids := slices.Collect(maps.Keys(root.Signers))
		return facts{"domain": root.Domain, "version": root.Version, "signing_keys": kids}, nil
	},
	"key-set": judgeDocument(keySet),
	"changes": judgeDocument(changes),
	"policy":  judgeDocument(policy),
	"domain":  judgeDocument(settings),
	"inclusion": func(given Claims) (facts, error) {
		proof, err := decodeProof(given["proof"])
		if err != nil {
			return nil, asDocument(err)
		}
		tree := &Checkpoint{given.number("size"), octets(given, "root")}
		return nil, checkInclusion(leafHash(octets(given, "entry")), given.number("index"), tree, proof)
	},
	"consistency": func(given Claims) (facts, error) {
		proof, err := decodeProof(given["proof"])
		if err != nil {
			return nil, err
		}
		older := &Checkpoint{given.number("old"), octets(given, "old_root")}
		return nil, checkConsistency(older, &Checkpoint{given.number("new"), octets(given, "new_root")}, proof)
	},
	"checkpoint": func(given Claims) (facts, error) {
		keys := []ed25519.PublicKey{}
		for _, jwk := range given.list("keys") {
			key, _ := ledgerKey(jwk)
			keys = append(keys, key)
		}
		head, err := readCheckpoint(given.text("note"), given.text("origin"), keys)
		if err != nil {
			return nil, err
		}
		return facts{"size": head.Size, "root": encode(head.Root)}, nil
	},
}

func octets(given Claims, member string) []byte {
	found, _ := decode(given.text(member))
	return found
}

func unless(right bool, code string) error {
	if right {
		return nil
	}
	return refuse(code, "")
}

func judgeKey(given Claims) (facts, error) {
	jwk, _ := given["jwk"].(map[string]any)
	key, err := readKey(jwk)
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.public)
	kid := "acme.internal/client-service/" + key.Thumbprint
	return facts{"alg": key.Alg, "thumbprint": key.Thumbprint, "keyId": kid, "publicKey": encode(spki)}, err
}

func judgeAuthorization(given Claims) (facts, error) {
	values := []string{}
	if value, ok := given["authorization"].(string); ok {
		values = append(values, value)
	}
	token, err := bearerToken(values)
	return facts{"token": token}, err
}

// listedTrust believes the keys that a file lists.
type listedTrust struct{ given Claims }

func (trust listedTrust) Domain() (string, error) { return trust.given.text("domain"), nil }

func (trust listedTrust) Settings() (Claims, error) { return trust.given, nil }

func (trust listedTrust) Policy(string) (map[string]any, error) {
	found, _ := trust.given["policy"].(map[string]any)
	return found, nil
}

func (trust listedTrust) Key(kid string) (*ListedKey, error) {
	for _, each := range trust.given.list("keys") {
		members := Claims(each.(map[string]any))
		switch {
		case members.text("kid") != kid:
			continue
		case members.text("state") == "revoked":
			return nil, refuse("revoked_key", "%s", kid)
		case members.text("state") == "unavailable":
			return nil, refuse("trust_unavailable", "%s", kid)
		}
		key, err := readKey(members["jwk"].(map[string]any))
		window := ListedKey{Key: key, Kid: kid, ActiveFrom: members.number("active_from"), ActiveUntil: members.number("active_until")}
		return &window, err
	}
	return nil, refuse("unknown_key", "%s", kid)
}

func judgeRequest(given Claims) (*Peer, error) {
	now := given.number("now")
	verifier := &Verifier{
		Trust: listedTrust{given}, Audience: given.text("audience"), Allow: map[string][]string{}, Replay: &ReplayGuard{},
		Now: func() int64 { return now },
	}
	for _, pair := range given.list("seen") {
		verifier.Replay.Claim(text(pair.([]any)[0]), text(pair.([]any)[1]), now+600, now)
	}
	for caller, scopes := range given["allow"].(map[string]any) {
		verifier.Allow[caller] = texts(scopes.([]any))
	}
	headers := map[string]string{}
	for name, value := range given["headers"].(map[string]any) {
		headers[name] = text(value)
	}
	return verifier.Verify(given.text("token"), &Request{
		Method: given.text("method"), Target: given.text("target"), Headers: headers, Scope: given.text("scope"),
		Body: func() ([]byte, error) { return octets(given, "body"), nil },
	})
}

func judgeDocument(kind *Kind) func(given Claims) (facts, error) {
	return func(given Claims) (facts, error) {
		registry := newRegistry("", given.text("pin"))
		registry.Now = func() int64 { return given.number("now") }
		registry.Get = func(url string, _ map[string]string) (string, error) {
			if strings.Contains(url, "/ledger/proof") {
				return string(canonical(map[string]any{"proof": given["consistency"]})), nil
			}
			return given.text("registry_keys"), nil
		}
		for _, before := range given.list("seen") {
			parsed, _ := parseJWS(text(before), 8<<20)
			payload, _ := strictObject(parsed.Payload)
			for _, kind := range []*Kind{keySet, changes, policy, settings} {
				if kind.typ == parsed.Typ {
					if _, _, err := registry.read(kind, text(before), text(payload["sub"]), 0); err != nil {
						return nil, err
					}
				}
			}
		}
		claims, keys, err := registry.read(kind, given.text("document"), given.text("subject"), registry.newest.Size)
		if err != nil || kind != keySet {
			return facts(claims), err
		}
		shown := maps.Clone(facts(claims))
		shown["keys"], shown["revoked"] = kidsIn(claims, "keys"), kidsIn(claims, "revoked")
		return shown, unless(len(keys) == len(claims.list("keys")), "document_malformed")
	}
}

func kidsIn(claims Claims, member string) []any {
	kids := []any{}
	for _, key := range claims.list(member) {
		kids = append(kids, key.(map[string]any)["kid"])
	}
	return kids
}

// runVectors runs every kind that this peer knows, and gives the exit code.
func runVectors(folder string) int {
	passed, failed := 0, 0
	for _, kind := range slices.Sorted(maps.Keys(judges)) {
		content, err := os.ReadFile(filepath.Join(folder, kind+".json"))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		for _, each := range casesIn(content) {
			if told := judged(kind, each); told != "" {
				failed++
				fmt.Fprintf(os.Stderr, "%s/%s: %s\n", kind, each.ID, told)
			} else {
				passed++
			}
		}
	}
	fmt.Printf("%d cases passed, %d failed\n", passed, failed)
	return min(failed, 1)
}

type vectorCase struct {
	ID, Expect    string
	Input, Claims Claims
}

func casesIn(content []byte) []*vectorCase {
	var file struct {
		Keys     []any
		Defaults Claims
		Cases    []*vectorCase
	}
	decoder := json.NewDecoder(bytes.NewReader(content))
	decoder.UseNumber()
	if err := decoder.Decode(&file); err != nil {
		panic(err)
	}
	for _, each := range file.Cases {
		given := Claims{"keys": file.Keys}
		maps.Copy(given, file.Defaults)
		maps.Copy(given, each.Input)
		each.Input = given
	}
	return file.Cases
}

// judged is empty where the verdict is the expected one.
func judged(kind string, each *vectorCase) string {
	found, err := judges[kind](each.Input)
	code := "accepted"
	if err != nil {
		code = codeOf(err)
	}
	if code != each.Expect {
		return fmt.Sprintf("%s, expected %s (%v)", code, each.Expect, err)
	}
	for member, value := range each.Claims {
		if !bytes.Equal(canonical(found[member]), canonical(value)) {
			return fmt.Sprintf("%s is %s", member, canonical(found[member]))
		}
	}
	return ""
}
