// Reads one JSON request from standard input, answers with one JSON line. What it believes, it believes by itself.
import { createPublicKey, verify } from 'node:crypto'
import { createRemoteJWKSet, decodeProtectedHeader, importPKCS8, jwtVerify, SignJWT } from 'jose'
import jwksRsa from 'jwks-rsa'

const judges = {
  // npm jose: the key set over HTTP, every claim checked that it knows of.
  async jose({ token, jwks, issuer, audience, typ, algorithms }) {
    const keys = createRemoteJWKSet(new URL(jwks))
    const { payload, protectedHeader } = await jwtVerify(token, keys, {
      issuer, audience, typ, algorithms, subject: issuer, maxTokenAge: 300,
      requiredClaims: ['iss', 'sub', 'aud', 'iat', 'nbf', 'exp', 'jti'],
    })
    return { payload, header: protectedHeader }
  },

  // npm jwks-rsa: finds the key by kid; Node's own OpenSSL verifies.
  async 'jwks-rsa'({ token, jwks }) {
    const header = decodeProtectedHeader(token)
    const key = await jwksRsa({ jwksUri: jwks }).getSigningKey(header.kid)
    const [head, payload, signature] = token.split('.')
    const publicKey = { key: createPublicKey(key.getPublicKey()), dsaEncoding: 'ieee-p1363' }
    const good = verify('sha256', Buffer.from(`${head}.${payload}`), publicKey, Buffer.from(signature, 'base64url'))
    if (!good) throw new Error('the signature does not verify')
    return { payload: JSON.parse(Buffer.from(payload, 'base64url')), header }
  },

  // npm jose as the caller: signs the claims with the given key.
  async sign({ pem, header, claims }) {
    return { token: await new SignJWT(claims).setProtectedHeader(header).sign(await importPKCS8(pem, header.alg)) }
  },
}

let text = ''
for await (const piece of process.stdin) text += piece
const request = JSON.parse(text)
try {
  console.log(JSON.stringify(await judges[request.judge](request)))
} catch (error) {
  console.log(JSON.stringify({ refused: error.code ?? error.name, message: error.message }))
}
