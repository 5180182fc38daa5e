%% NKeys and NATS JWTs for tests, made here and now.
-module(nats_gateway_credentials).

-export([pair/1, public/1, key/1, sign/2, jwt/2, jwt/3, old_jwt/4, user/3, account/3, operator/2, nats/1]).

-type pair() :: {PublicKey :: binary(), Private :: binary()}.

-define(PREFIXES, #{user => 20 bsl 3, account => 0, operator => 14 bsl 3, server => 13 bsl 3}).

-spec pair(atom()) -> pair().
pair(Role) ->
    {Public, Private} = crypto:generate_key(eddsa, ed25519),
    Body = <<(maps:get(Role, ?PREFIXES)), Public/binary>>,
    {base32(<<Body/binary, (crc16(Body, 0)):16/little>>), Private}.

-spec public(atom()) -> binary().
public(Role) -> key(pair(Role)).

-spec key(pair()) -> binary().
key({Public, _}) -> Public.

%% As a client writes it.
-spec sign(binary(), pair()) -> binary().
sign(Message, {_, Private}) ->
    base64url(crypto:sign(eddsa, none, Message, [Private, ed25519])).

jwt(Claims, Issuer) -> jwt(#{typ => <<"JWT">>, alg => <<"ed25519-nkey">>}, Claims, Issuer).

-spec jwt(map(), map(), pair()) -> binary().
jwt(Header, Claims, Issuer) ->
    Body = maps:merge(#{iss => key(Issuer), iat => erlang:system_time(second)}, Claims),
    Signed = <<(base64url(json(Header)))/binary, $., (base64url(json(Body)))/binary>>,
    <<Signed/binary, $., (sign(Signed, Issuer))/binary>>.

%% Of version 1: only the claims are signed.
-spec old_jwt(atom(), pair(), map(), pair()) -> binary().
old_jwt(Type, Subject, Nats, Issuer) ->
    Header = base64url(json(#{typ => <<"jwt">>, alg => <<"ed25519">>})),
    Body = #{iss => key(Issuer), iat => erlang:system_time(second), sub => key(Subject)},
    Claims = base64url(json(Body#{type => Type, nats => Nats})),
    <<Header/binary, $., Claims/binary, $., (sign(Claims, Issuer))/binary>>.

%% No limits, as the tools write them.
nats(Nats) -> maps:merge(#{version => 2, subs => -1, data => -1, payload => -1}, Nats).

-spec user(pair(), map(), pair()) -> binary().
user(User, Claims = #{nats := Nats}, Issuer) ->
    jwt(Claims#{sub => key(User), nats := maps:merge(#{type => user, version => 2}, Nats)}, Issuer);
user(User, Nats, Issuer) ->
    user(User, #{nats => nats(Nats)}, Issuer).

-spec account(pair(), map(), pair()) -> binary().
account(Account, Claims = #{nats := Nats}, Issuer) ->
    Limits = maps:merge(#{subs => -1, payload => -1, conn => -1}, maps:get(limits, Nats, #{})),
    jwt(
        Claims#{
            sub => key(Account),
            nats := maps:merge(#{type => account, version => 2}, Nats#{limits => Limits})
        },
        Issuer
    );
account(Account, Nats, Issuer) ->
    account(Account, #{nats => Nats}, Issuer).

-spec operator(pair(), map()) -> binary().
operator(Operator, Nats) ->
    jwt(
        #{
            sub => key(Operator),
            nats => maps:merge(#{type => operator, version => 2}, Nats)
        },
        Operator
    ).

base64url(Bytes) ->
    << <<(case C of $+ -> $-; $/ -> $_; _ -> C end)>> || <<C>> <= base64:encode(Bytes), C =/= $= >>.

base32(Bytes) ->
    Alphabet = <<"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567">>,
    << <<(binary:at(Alphabet, Index))>> || <<Index:5>> <= Bytes >>.

%% CRC16/XMODEM
crc16(<<>>, Crc) -> Crc;
crc16(<<Byte, Rest/binary>>, Crc) -> crc16(Rest, shift(8, Crc bxor (Byte bsl 8))).

shift(0, Crc) -> Crc;
shift(N, Crc) when Crc band 16#8000 =/= 0 -> shift(N - 1, ((Crc bsl 1) bxor 16#1021) band 16#FFFF);
shift(N, Crc) -> shift(N - 1, Crc bsl 1).

%% Older runtimes have none.
json(Map) when is_map(Map) ->
    Fields = [[json(text(Key)), $:, json(Value)] || {Key, Value} <- maps:to_list(Map)],
    iolist_to_binary([${, lists:join($,, Fields), $}]);
json(List) when is_list(List) -> iolist_to_binary([$[, lists:join($,, [json(V) || V <- List]), $]]);
json(Number) when is_integer(Number) -> integer_to_binary(Number);
json(Atom) when Atom =:= true; Atom =:= false; Atom =:= null -> atom_to_binary(Atom);
json(Atom) when is_atom(Atom) -> json(atom_to_binary(Atom));
json(Text) -> <<$", Text/binary, $">>.

text(Key) when is_atom(Key) -> atom_to_binary(Key);
text(Key) -> Key.
