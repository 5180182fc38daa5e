%% The gateway's own logins, which come before that of the broker: the methods of EMQX's
%% `internal_authn' (token, nkey, jwt), and the users of a settings file.
%%
%% Methods are tried in their order. If the client did not send the credentials of a method, the
%% next method is tried. After the last one, the broker's own login follows if there is one;
%% otherwise the client is refused. A method whose credentials are there decides. There are two
%% exceptions, if something comes after the method: a user name that is not in the list of users,
%% and an NKey that is not in its list but comes with a JWT. These are passed on.
-module(nats_gateway_login).

-export([new/1]).
-export([none/0]).
-export([nobody/0]).
-export([fall_through/2]).
-export([auth_required/2]).
-export([takes_bearer_tokens/1]).
-export([accounts/1]).
-export([nonce/1]).
-export([authenticate/3]).
-export([secret/1]).
-export([is_plain/1]).

-export_type([login/0, spec/0, user/0, identity/0, facts/0, secret/0, secret_problem/0]).
-export_type([verdict/0]).

%% Secrets are not kept in plain text.
-opaque secret() :: {sha256 | bcrypt, binary()}.

-type secret_problem() ::
    bad_hash | hash_too_slow | {file, relative | empty | file:posix() | badarg}.

-type user() :: #{
    user := undefined | binary(),
    password := undefined | secret(),
    nkey := undefined | binary(),
    rules := nats_gateway_permissions:rules()
}.

-type method() ::
    {token, secret()}
    | {nkey, [PublicKey :: binary()]}
    | {jwt, nats_gateway_jwt:trust()}
    | {users, [user()]}.

-type spec() :: #{
    methods := [method()],
    %% a client that sends nothing at all is this user, or this NKey
    no_auth_user => undefined | binary(),
    %% whether the broker's own login follows
    falls_through => boolean()
}.

-record(login, {
    methods :: [
        {token, secret()}
        | {nkey, #{binary() => []}}
        | {jwt, nats_gateway_jwt:trust()}
        | {users, Names :: #{binary() => user()}, NKeys :: #{binary() => user()}}
    ],
    no_auth_user :: undefined | user(),
    falls_through :: boolean()
}).

-opaque login() :: none | #login{}.

%% `certified' means that the user name is the one in the client's certificate. As in nats-server, a
%% user that has a password still needs it.
-type facts() :: #{
    certified := boolean(),
    nonce := undefined | binary(),
    peerhost := inet:ip_address(),
    transport := tcp | ssl | ws | wss,
    now := integer(),
    offset := integer()
}.

%% Who the client is. Times are in milliseconds from the login.
-type identity() :: #{
    method := token | nkey | jwt | user | certificate | no_auth_user,
    username := binary(),
    nkey => binary(),
    %% these come from the JWT
    name => binary(),
    account => binary(),
    account_name => binary(),
    issuer_key => binary(),
    tags => [binary()],
    jwt => binary(),
    rules := nats_gateway_permissions:rules(),
    max_payload := non_neg_integer() | infinity,
    max_subscriptions := non_neg_integer() | infinity,
    max_account_connections => non_neg_integer() | infinity,
    zero_claims => [binary()],
    expires := infinity | {non_neg_integer(), atom()}
}.

%% `ignore' leaves the client to the broker. The reason is only for the log.
-type verdict() ::
    {ok, identity()} | ignore | {error, {Method :: atom(), nats_gateway_jwt:reason()}}.

%% EMQX gives this name to all clients with a token.
-define(TOKEN_USER, <<"token">>).

-define(UNRESTRICTED, #{
    publish => #{allow => all, deny => []},
    subscribe => #{allow => all, deny => []},
    allow_responses => undefined
}).

%% More than fits into any CONNECT.
-define(MAX_SECRET_FILE_BYTES, 65536).

%% The same length as in nats-server: 15 characters.
-define(NONCE_BYTES, 11).

%% -------------------------------------------------------------------------------------------
%% Settings

%% The user that does not have to send anything must be one of the users.
-spec new(spec()) -> {ok, login()} | {error, no_such_user}.
new(Spec = #{methods := Methods}) ->
    Compiled = [compile(Method) || Method <- Methods],
    case maps:get(no_auth_user, Spec, undefined) of
        undefined when Methods =:= [] ->
            {ok, none};
        undefined ->
            {ok, login(Compiled, undefined, Spec)};
        Name ->
            case
                [
                    User
                 || {users, Names, NKeys} <- Compiled,
                    Users <- [Names, NKeys],
                    {ok, User} <- [maps:find(Name, Users)]
                ]
            of
                [User | _] -> {ok, login(Compiled, User, Spec)};
                [] -> {error, no_such_user}
            end
    end.

login(Methods, NoAuthUser, Spec) ->
    #login{
        methods = Methods,
        no_auth_user = NoAuthUser,
        falls_through = maps:get(falls_through, Spec, false)
    }.

compile({nkey, Keys}) ->
    {nkey, maps:from_list([{Key, []} || Key <- Keys])};
compile({users, Users}) ->
    {users, maps:from_list([{Name, User} || User = #{user := Name} <- Users, Name =/= undefined]),
        maps:from_list([{Key, User} || User = #{nkey := Key} <- Users, Key =/= undefined])};
compile(Method) ->
    Method.

%% There is no method.
-spec none() -> login().
none() -> none.

%% The methods could not be understood, so only the broker's own login can let a client in.
-spec nobody() -> login().
nobody() -> #login{methods = [], no_auth_user = undefined, falls_through = false}.

%% The same methods, with or without the broker's own login after them.
-spec fall_through(boolean(), login()) -> login().
fall_through(FallsThrough, Login = #login{}) -> Login#login{falls_through = FallsThrough};
fall_through(_, none) -> none.

%% Whether clients are told to log in, and nothing is accepted from them before that.
-spec auth_required(login(), OfBroker :: boolean()) -> boolean().
auth_required(none, OfBroker) -> OfBroker;
auth_required(#login{no_auth_user = NoAuthUser}, _) -> NoAuthUser =:= undefined.

%% Whether a JWT without a signature can be enough.
-spec takes_bearer_tokens(login()) -> boolean().
takes_bearer_tokens(none) ->
    false;
takes_bearer_tokens(#login{methods = Methods}) ->
    lists:any(fun nats_gateway_jwt:takes_bearer_tokens/1, [Trust || {jwt, Trust} <- Methods]).

%% Those of the JWTs; empty where nobody logs in with one.
-spec accounts(login()) -> #{Key :: binary() => nats_gateway_jwt:account_facts()}.
accounts(none) ->
    #{};
accounts(#login{methods = Methods}) ->
    lists:foldl(fun maps:merge/2, #{}, [nats_gateway_jwt:accounts(Trust) || {jwt, Trust} <- Methods]).

%% A nonce for the INFO of one connection, if a method needs a signature of it.
-spec nonce(login()) -> undefined | binary().
nonce(none) ->
    undefined;
nonce(#login{methods = Methods}) ->
    case lists:any(fun is_signing/1, Methods) of
        true -> url_safe(base64:encode(crypto:strong_rand_bytes(?NONCE_BYTES)));
        false -> undefined
    end.

is_signing({token, _}) -> false;
is_signing({users, _, NKeys}) -> map_size(NKeys) > 0;
is_signing(_) -> true.

url_safe(Base64) ->
    <<
        <<
            (case Byte of
                $+ -> $-;
                $/ -> $_;
                _ -> Byte
            end)
        >>
     || <<Byte>> <= Base64, Byte =/= $=
    >>.

%% A password or token in the settings: in plain text, as its bcrypt hash, or as `file://' and the
%% absolute path of a file that holds either. (EMQX has such paths for its own secrets, too.)
-spec secret(binary()) -> {ok, secret()} | {error, secret_problem()}.
secret(<<"file://", Path/binary>>) ->
    case read_secret(Path) of
        {ok, Content} -> secret_itself(Content);
        {error, Reason} -> {error, {file, Reason}}
    end;
secret(Secret) ->
    secret_itself(Secret).

%% Whether the setting has the secret itself.
-spec is_plain(binary()) -> boolean().
is_plain(<<"file://", _/binary>>) -> false;
is_plain(Secret) -> not is_hash(Secret).

is_hash(<<"$2", Version, "$", _/binary>>) -> lists:member(Version, "abxy");
is_hash(_) -> false.

secret_itself(Secret) ->
    case is_hash(Secret) andalso nats_gateway_nif:bcrypt_cost(Secret) of
        false -> {ok, {sha256, crypto:hash(sha256, Secret)}};
        invalid -> {error, bad_hash};
        %% A comparison would take some seconds, and a login has two seconds.
        Cost when Cost > 16 -> {error, hash_too_slow};
        _ -> {ok, {bcrypt, Secret}}
    end.

read_secret(Path = <<"/", _/binary>>) ->
    case file:open(Path, [read, raw, binary]) of
        {ok, File} ->
            Read = file:read(File, ?MAX_SECRET_FILE_BYTES + 1),
            ok = file:close(File),
            file_content(Read);
        {error, Reason} ->
            {error, Reason}
    end;
read_secret(_) ->
    {error, relative}.

file_content({ok, Content}) when byte_size(Content) > ?MAX_SECRET_FILE_BYTES ->
    {error, efbig};
file_content({ok, Content}) ->
    case re:replace(Content, "^\\s+|\\s+$", <<>>, [global, dollar_endonly, {return, binary}]) of
        <<>> -> {error, empty};
        Secret -> {ok, Secret}
    end;
file_content(eof) ->
    {error, empty};
file_content({error, Reason}) ->
    {error, Reason}.

%% The caller does comparisons that take long.
compare({bcrypt, Hash}, Given, IfRight, IfWrong) ->
    {verify, {Given, Hash}, IfRight, IfWrong};
compare({sha256, Hash}, Given, IfRight, IfWrong) ->
    case crypto:hash_equals(Hash, crypto:hash(sha256, Given)) of
        true -> {ok, IfRight};
        false -> {error, IfWrong}
    end.

%% -------------------------------------------------------------------------------------------
%% Login

%% `verify' asks the caller to find out whether the bcrypt hash is that of the given password
%% (`nats_gateway_passwords').
-spec authenticate(login(), Connect :: #{atom() => term()}, facts()) ->
    verdict()
    | {verify, {Given :: binary(), Hash :: binary()}, IfRight :: verdict(), IfWrong :: verdict()}.
authenticate(none, _, _) ->
    ignore;
authenticate(#login{no_auth_user = User, methods = Methods, falls_through = More}, Connect, Facts) ->
    Given = maps:filter(
        fun(_, Value) -> Value =/= <<>> end,
        maps:with([user, pass, auth_token, nkey, sig, jwt], Connect)
    ),
    case User =/= undefined andalso shows_nothing(Given, Methods) of
        true -> {ok, identity(no_auth_user, User)};
        false -> next(Methods, Given, Facts, More)
    end.

%% As in nats-server, an NKey or JWT is ignored if no method takes one: some clients send what they
%% have, whatever INFO says.
shows_nothing(Given, Methods) ->
    Untaken =
        [jwt || not lists:keymember(jwt, 1, Methods)] ++
            [nkey || not lists:any(fun takes_nkeys/1, Methods)],
    map_size(maps:without([sig | Untaken], Given)) =:= 0.

takes_nkeys({nkey, _}) -> true;
takes_nkeys({users, _, NKeys}) -> map_size(NKeys) > 0;
takes_nkeys(_) -> false.

next([], _, _, true) ->
    ignore;
next([], _, _, false) ->
    {error, {internal_authn, not_valid}};
next([Method | Rest], Given, Facts, More) ->
    HasMore = Rest =/= [] orelse More,
    case method(Method, Given, Facts) of
        {ok, Identity} ->
            {ok, Identity};
        {verify, What, Identity, Reason} ->
            {verify, What, {ok, Identity}, {error, {name(Method), Reason}}};
        {absent, _} when HasMore ->
            next(Rest, Given, Facts, More);
        {unknown, Reason} ->
            case is_passed_on(Method, Given, Rest, More) of
                true -> next(Rest, Given, Facts, More);
                false -> {error, {name(Method), Reason}}
            end;
        {_, Reason} ->
            {error, {name(Method), Reason}}
    end.

name({users, _, _}) -> users;
name({Name, _}) -> Name.

is_passed_on({users, _, _}, _, Rest, More) -> Rest =/= [] orelse More;
is_passed_on({nkey, _}, Given, Rest, _) -> is_map_key(jwt, Given) andalso lists:keymember(jwt, 1, Rest).

method({token, Secret}, #{auth_token := Token}, _) ->
    Identity = identity(token, #{user => ?TOKEN_USER, rules => ?UNRESTRICTED}),
    compare(Secret, Token, Identity, wrong_token);
method({token, _}, _, _) ->
    {absent, no_token};
method({nkey, Keys}, Given = #{nkey := Key}, Facts) ->
    Canonical = string:uppercase(Key),
    case Keys of
        #{Canonical := []} ->
            signed(nkey, #{nkey => Canonical, rules => ?UNRESTRICTED}, Given, Facts);
        #{} ->
            {unknown, unknown_nkey}
    end;
method({nkey, _}, _, _) ->
    {absent, no_nkey};
method({jwt, Trust}, Given = #{jwt := Jwt}, Facts) ->
    case nats_gateway_jwt:login(Jwt, maps:get(sig, Given, undefined), {Trust, Facts}) of
        {ok, Identity} -> {ok, Identity#{method => jwt}};
        {error, Reason} -> {error, Reason}
    end;
method({jwt, _}, _, _) ->
    {absent, no_jwt};
method({users, _, NKeys}, Given = #{nkey := Key}, Facts) when map_size(NKeys) > 0 ->
    case maps:find(string:uppercase(Key), NKeys) of
        {ok, User} -> signed(nkey, User, Given, Facts);
        error -> {unknown, unknown_nkey}
    end;
method({users, Names, _}, Given = #{user := Name}, #{certified := Certified}) ->
    case Names of
        #{Name := User = #{password := undefined}} when Certified ->
            {ok, identity(certificate, User)};
        %% This user can log in only with a certificate.
        #{Name := #{password := undefined}} ->
            {error, wrong_password};
        #{Name := User = #{password := Password}} ->
            compare(Password, maps:get(pass, Given, <<>>), identity(user, User), wrong_password);
        #{} ->
            {unknown, unknown_user}
    end;
method({users, _, _}, _, _) ->
    {absent, no_user}.

%% The signature is made for this connection's nonce, so others who have seen it cannot use it.
signed(Method, User = #{nkey := Key}, #{sig := Signature}, #{nonce := Nonce}) when
    is_binary(Nonce)
->
    case nats_gateway_nif:nkey_verify(Key, Nonce, Signature) of
        true -> {ok, identity(Method, User)};
        false -> {error, bad_signature}
    end;
signed(_, _, _, _) ->
    {error, no_signature}.

identity(Method, User = #{rules := Rules}) ->
    Key = maps:get(nkey, User, undefined),
    Identity = #{
        method => Method,
        username =>
            case User of
                #{user := Name} when is_binary(Name) -> Name;
                #{} -> Key
            end,
        rules => Rules,
        max_payload => infinity,
        max_subscriptions => infinity,
        expires => infinity
    },
    case Key of
        undefined -> Identity;
        _ -> Identity#{nkey => Key}
    end.
