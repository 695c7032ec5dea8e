// What this peer believes of the registry, and for how long (docs/protocol.md: Check a document, How long a document is
// believed).
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"slices"
	"sync"
	"time"
)

const (
	offlineLimit = 3600 // seconds for which a document is believed after its last signed confirmation
	poll         = 1    // seconds between two questions for changes: a revocation takes effect that soon
	cooldown     = 5    // seconds until a document that could not be had is asked for again
)

var errNotFound = errors.New("404")

// Registry is the trust store. One lock is enough for a small peer: a question holds up the others for at most the time
// of one fetch.
type Registry struct {
	URL, Pin string
	Now      func() int64
	Get      func(url string, headers map[string]string) (string, error)
	Headers  func(method, target string) (map[string]string, error) // signs a call to the registry

	lock    sync.Mutex
	root    *Root
	newest  Checkpoint
	held    map[string]*held // by path
	failed  map[string]int64 // by path: when it could not be had
	revoked map[string]bool  // kids: no later document brings one back
	polled  int64
}

// held is a document that is believed.
type held struct {
	claims               Claims
	keys                 map[string]*ListedKey
	subject              string
	covered, confirmedAt int64
	changedAt            int64 // the entry that changed the subject since; 0 for none
}

// newRegistry trusts the registry at that URL whose root key has the thumbprint `pin`.
func newRegistry(url, pin string) *Registry {
	return &Registry{
		URL: url, Pin: pin, Get: httpGet, Now: func() int64 { return time.Now().Unix() },
		held: map[string]*held{}, failed: map[string]int64{}, revoked: map[string]bool{},
	}
}

// Domain is the trust domain.
func (r *Registry) Domain() (string, error) {
	r.lock.Lock()
	defer r.lock.Unlock()
	root, err := r.rootDocument(false)
	if err != nil {
		return "", err
	}
	return root.Domain, nil
}

// Key finds a service's key by its kid. Refuses with unknown_key, revoked_key or trust_unavailable.
func (r *Registry) Key(kid string) (*ListedKey, error) {
	owner, _, err := splitKid(kid)
	if err != nil {
		return nil, err
	}
	_, service, _ := splitServiceID(owner)
	r.lock.Lock()
	defer r.lock.Unlock()
	found, err := r.believed(keySet, "/v1/services/"+service+"/jwks.jwt", owner)
	switch {
	case err != nil:
		return nil, err
	case r.revoked[kid]:
		return nil, refuse("revoked_key", "%s", kid)
	case found.keys[kid] == nil:
		return nil, refuse("unknown_key", "%s", kid)
	}
	return found.keys[kid], nil
}

// Policy is the operators' policy for a service, nil where there is none.
func (r *Registry) Policy(id string) (map[string]any, error) {
	_, service, err := splitServiceID(id)
	if err != nil {
		return nil, err
	}
	r.lock.Lock()
	defer r.lock.Unlock()
	found, err := r.believed(policy, "/v1/services/"+service+"/policy.jwt", id)
	if err != nil {
		return nil, err
	}
	allowed, _ := found.claims["policy"].(map[string]any)
	return allowed, nil
}

// read gives a document that passes every check, and its keys. It must cover so many entries.
func (r *Registry) read(kind *Kind, compact, subject string, covered int64) (Claims, map[string]*ListedKey, error) {
	claims, root, err := r.readSigned(kind, compact)
	if err != nil {
		return nil, nil, err
	}
	head, err := readCheckpoint(claims.text("checkpoint"), root.Domain, root.LedgerKeys)
	if err != nil {
		return nil, nil, err
	}
	seq, size := claims.number("seq"), claims.number("seq")
	if kind != changes {
		size = claims.number("head")
	}
	if head.Size != size || seq > size {
		return nil, nil, refuse("document_malformed", "the checkpoint is of another size")
	}
	var keys map[string]*ListedKey
	if kind == keySet {
		keys, err = keysOf(claims)
	}
	switch {
	case err != nil:
		return nil, nil, err
	case claims.text("sub") != subject:
		return nil, nil, refuse("document_wrong_subject", "%q", claims.text("sub"))
	case head.Size < covered:
		return nil, nil, refuse("document_rolled_back", "older than what was seen")
	}
	_, service, _ := splitServiceID(subject)
	for _, key := range keys {
		if err := checkAdmission(key, service, head); err != nil {
			return nil, nil, err
		}
	}
	if err := r.follow(head, claims); err != nil {
		return nil, nil, err
	}
	for kid := range keys {
		if r.revoked[kid] {
			return nil, nil, refuse("document_revived_key", "%s", kid)
		}
	}
	for _, each := range claims.list("revoked") {
		if key, ok := each.(map[string]any); ok {
			each = key["kid"]
		}
		r.revoked[text(each)] = true
	}
	return claims, keys, nil
}

func (r *Registry) readSigned(kind *Kind, compact string) (Claims, *Root, error) {
	root, err := r.rootDocument(false)
	if err != nil {
		return nil, nil, err
	}
	claims, err := readDocument(kind, compact, root.Signers, root.Domain, r.Now())
	if codeOf(err) == "document_unknown_signer" { // the registry may have a new signing key
		if root, err = r.rootDocument(true); err != nil {
			return nil, nil, err
		}
		claims, err = readDocument(kind, compact, root.Signers, root.Domain, r.Now())
	}
	return claims, root, err
}

func (r *Registry) rootDocument(again bool) (*Root, error) {
	if r.root != nil && !again {
		return r.root, nil
	}
	compact, err := r.Get(r.URL+"/.well-known/peerseal-registry", nil)
	if err != nil {
		return nil, err
	}
	found, err := readRegistryKeys(compact, r.Pin, r.Now())
	if err != nil {
		return nil, err
	}
	if r.root != nil && found.Version < r.root.Version {
		return nil, refuse("document_rolled_back", "version %d", found.Version)
	}
	r.root = found
	return found, nil
}

// follow checks that the ledger only grows: the newer of two checkpoints begins with the older one.
func (r *Registry) follow(head *Checkpoint, claims Claims) error {
	older, newer := head, &r.newest
	if older.Size > newer.Size {
		older, newer = newer, older
	}
	if older.Size > 0 {
		proof, err := r.proof(older, newer, claims)
		if err == nil {
			err = checkConsistency(older, newer, proof)
		}
		if err != nil {
			return err
		}
	}
	if head.Size > r.newest.Size {
		r.newest = *head
	}
	return nil
}

func (r *Registry) proof(older, newer *Checkpoint, claims Claims) ([]hash, error) {
	if older.Size == newer.Size {
		return nil, nil
	}
	if offered, given := claims["proof"]; given && claims.number("since") == older.Size {
		return decodeProof(offered)
	}
	answer, err := r.Get(fmt.Sprintf("%s/ledger/proof?from=%d&to=%d", r.URL, older.Size, newer.Size), nil)
	if err != nil {
		return nil, err
	}
	var found struct{ Proof any }
	if err := json.Unmarshal([]byte(answer), &found); err != nil {
		return nil, err
	}
	return decodeProof(found.Proof)
}

// believed gives the document at that path, while a signed time confirms it.
func (r *Registry) believed(kind *Kind, path, subject string) (*held, error) {
	if len(r.held) > 0 && r.Now() >= r.polled+poll {
		r.polled = r.Now()
		if err := r.takeChanges(); err != nil {
			log.Printf("changes: %v", err) // the documents that are held are believed for a while
		}
	}
	found := r.held[path]
	if (found == nil || found.changedAt > 0) && r.Now() >= r.failed[path]+cooldown {
		fresh, err := r.fetch(kind, path, subject, found)
		if err != nil {
			r.failed[path] = r.Now()
			if errors.Is(err, errNotFound) && found == nil {
				return nil, refuse("unknown_key", "the registry knows no such service")
			}
			log.Printf("%s: %v", path, err)
		} else {
			r.held[path], found = fresh, fresh
		}
	}
	if found == nil || r.Now() > found.confirmedAt+offlineLimit || r.Now() >= found.claims.number("exp") {
		return nil, refuse("trust_unavailable", "%s: no signed time confirms it", path)
	}
	return found, nil
}

func (r *Registry) fetch(kind *Kind, path, subject string, before *held) (*held, error) {
	target, covered := path, int64(0)
	if before != nil {
		covered = before.changedAt
		target = fmt.Sprintf("%s?seq=%d", path, covered)
	}
	var headers map[string]string
	if kind == policy && r.Headers != nil { // a restricted policy is told to its own service only
		var err error
		if headers, err = r.Headers("GET", target); err != nil {
			return nil, err
		}
	}
	compact, err := r.Get(r.URL+target, headers)
	if err != nil {
		return nil, err
	}
	claims, keys, err := r.read(kind, compact, subject, covered)
	if err != nil {
		return nil, err
	}
	if before != nil && claims.number("seq") < before.claims.number("seq") {
		return nil, refuse("document_rolled_back", "%s", path)
	}
	return &held{
		claims: claims, keys: keys, subject: subject, covered: claims.number("head"), confirmedAt: claims.number("iat"),
	}, nil
}

// takeChanges asks which services have changed since the oldest document that is held.
func (r *Registry) takeChanges() error {
	root, err := r.rootDocument(false)
	if err != nil {
		return err
	}
	since := int64(-1)
	for _, each := range r.held {
		if since < 0 || each.covered < since {
			since = each.covered
		}
	}
	compact, err := r.Get(fmt.Sprintf("%s/v1/changes?since=%d", r.URL, since), nil)
	if err != nil {
		return err
	}
	claims, _, err := r.read(changes, compact, root.Domain, 0)
	if err != nil {
		return err
	}
	seq, reset, services := claims.number("seq"), claims["reset"] == true, claims.list("services")
	if reset || slices.Contains(services, any(root.Domain+"/registry")) {
		if _, err := r.rootDocument(true); err != nil {
			log.Printf("registry keys: %v", err)
		}
	}
	for _, each := range r.held {
		switch {
		case each.covered > seq: // the list is older than this document
		case reset || claims.number("since") > each.covered, each.covered < seq && slices.Contains(services, any(each.subject)):
			each.changedAt = seq
		default:
			each.covered, each.confirmedAt = seq, max(each.confirmedAt, claims.number("iat"))
		}
	}
	return nil
}

var client = &http.Client{
	Timeout:       5 * time.Second,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

func httpGet(url string, headers map[string]string) (string, error) {
	request, err := http.NewRequest("GET", url, nil)
	if err != nil {
		return "", err
	}
	for name, value := range headers {
		request.Header.Set(name, value)
	}
	answer, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, 8<<20+1))
	switch {
	case answer.StatusCode == 404:
		return "", errNotFound
	case answer.StatusCode != 200:
		return "", fmt.Errorf("the registry answered %d", answer.StatusCode)
	}
	return string(body), err
}
