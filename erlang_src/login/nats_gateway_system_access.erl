%% Who may ask for what nats-server tells its system account, below `$SYS.REQ.SERVER'.
%%
%% Only a name that was proven counts: a claim in CONNECT alone is worth nothing.
-module(nats_gateway_system_access).

-export([nobody/0]).
-export([is_for_anybody/1]).
-export([has/2]).

-export_type([access/0, proof/0]).

%% Public NKeys of users, and the public keys of accounts whose users may.
-type access() :: #{users := [binary()], nkeys := [binary()], accounts := [binary()]}.

%% Who the client is: what a login of the gateway's own has accepted, or the user whose password the
%% broker has checked.
-type proof() :: nats_gateway_login:identity() | {broker, User :: binary()} | none.

-spec nobody() -> access().
nobody() -> #{users => [], nkeys => [], accounts => []}.

-spec is_for_anybody(access()) -> boolean().
is_for_anybody(Access) -> Access =/= nobody().

%% The user of a JWT has a name that its account has chosen, and `no_auth_user' one that it did not
%% have to prove: neither is a name of `users'. A token is nobody's name.
-spec has(proof(), access()) -> boolean().
has(none, _) ->
    false;
has({broker, User}, #{users := Users}) ->
    lists:member(User, Users);
has(#{method := no_auth_user}, _) ->
    false;
has(Identity = #{method := Method, username := User}, #{users := Users, nkeys := NKeys, accounts := Accounts}) ->
    (is_named(Method) andalso lists:member(User, Users)) orelse
        is_listed(nkey, Identity, NKeys) orelse is_listed(account, Identity, Accounts).

is_named(Method) -> Method =:= user orelse Method =:= certificate.

is_listed(Key, Identity, Listed) ->
    case Identity of
        #{Key := Value} -> lists:member(Value, Listed);
        #{} -> false
    end.
