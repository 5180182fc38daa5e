%% The settings of `nats_gateway_login': in the standalone gateway's file, in EMQX's settings of the
%% gateway, and on the plugin's page.
-module(nats_gateway_login_config).

-export([file_schema/0]).
-export([file_keys/0]).
-export([of_file/2]).
-export([of_gateway/1]).
-export([page_schema/0]).
-export([page_keys/0]).
-export([of_page/1]).

-import(nats_gateway_config, [invalid/2]).

%% -------------------------------------------------------------------------------------------
%% The file: the methods of EMQX under the same names, and what nats-server has besides

-spec file_schema() -> nats_gateway_config:schema().
file_schema() ->
    (gateway_schema())#{
        users => {{list, {table, user_schema()}}, []},
        no_auth_user => {string, undefined},
        auth_token => {secret, undefined}
    }.

%% They are not kept: what they come to is.
-spec file_keys() -> [atom()].
file_keys() -> maps:keys(file_schema()).

user_schema() ->
    #{
        user => {string, undefined},
        password => {secret, undefined},
        nkey => {user_key, undefined},
        permissions =>
            {
                {table, #{
                    publish => {{subjects, no_queues}, #{allow => all, deny => []}},
                    subscribe => {{subjects, queues}, #{allow => all, deny => []}},
                    allow_responses => {responses, undefined}
                }},
                #{}
            }
    }.

%% The order of nats-server: JWT and NKeys, users, token. To be called inside of
%% `nats_gateway_config:valid/1'.
-spec of_file(Settings :: map(), FallsThrough :: boolean()) -> nats_gateway_login:login().
of_file(Settings, FallsThrough) ->
    #{users := Users, no_auth_user := NoAuthUser, auth_token := Token} = Settings,
    ok = distinct([Name || #{user := Name} <- Users, Name =/= undefined], <<"users">>),
    ok = distinct([Key || #{nkey := Key} <- Users, Key =/= undefined], <<"users">>),
    new(#{
        methods =>
            methods(Settings) ++
                [{users, [user(N, User) || {N, User} <- numbered(Users)]} || Users =/= []] ++
                [{token, Token} || Token =/= undefined],
        no_auth_user => NoAuthUser,
        falls_through => FallsThrough
    }).

user(N, #{user := undefined, nkey := undefined}) ->
    invalid([N, <<"users">>], <<"must have a user and password, or an nkey">>);
user(N, #{user := Name, nkey := Key}) when Name =/= undefined, Key =/= undefined ->
    invalid([N, <<"users">>], <<"must have either a user or an nkey">>);
user(N, #{nkey := Key, password := Password}) when Key =/= undefined, Password =/= undefined ->
    invalid([N, <<"users">>], <<"must have no password where it has an nkey">>);
user(N, #{user := <<>>}) ->
    invalid([<<"user">>, N, <<"users">>], <<"must not be empty">>);
user(_, User = #{permissions := Rules}) ->
    (maps:remove(permissions, User))#{rules => Rules}.

%% -------------------------------------------------------------------------------------------
%% EMQX's `internal_authn', with binary keys

gateway_schema() ->
    Preload = #{pubkey => {string, required}, jwt => {string, required}},
    Resolver = #{
        type => {{one_of, [memory]}, memory},
        %% nobody can log in without, but the operator may not have anybody yet
        resolver_preload => {{list, {table, Preload}}, []}
    },
    #{
        internal_authn =>
            {
                {list,
                    {by_type, #{
                        token => #{token => {secret, required}},
                        nkey => #{nkeys => {{list, user_key}, required}},
                        jwt => #{
                            trusted_operators => {{list, string}, required},
                            resolver => {{table, Resolver}, required}
                        }
                    }}},
                []
            }
    }.

-spec of_gateway(Tables :: map()) ->
    {ok, nats_gateway_login:login()} | {error, Text :: binary()}.
of_gateway(Tables) ->
    case nats_gateway_config:check(gateway_schema(), Tables) of
        {ok, Settings} ->
            nats_gateway_config:valid(fun() -> new(#{methods => methods(Settings)}) end);
        {error, Text} ->
            {error, Text}
    end.

methods(#{internal_authn := Methods}) ->
    [method([N, <<"internal_authn">>], Method) || {N, Method} <- numbered(Methods)].

method(_, #{type := token, token := Token}) ->
    {token, Token};
method(Path, #{type := nkey, nkeys := Keys}) ->
    ok = not_empty(Keys, [<<"nkeys">> | Path]),
    {nkey, Keys};
method(Path, #{type := jwt, trusted_operators := Operators, resolver := Resolver}) ->
    #{resolver_preload := Preload} = Resolver,
    PreloadPath = [<<"resolver_preload">>, <<"resolver">> | Path],
    ok = not_empty(Operators, [<<"trusted_operators">> | Path]),
    jwt(Operators, [{Key, Jwt} || #{pubkey := Key, jwt := Jwt} <- Preload], fun
        (operator, N) -> [N, <<"trusted_operators">> | Path];
        (account, N) -> [<<"jwt">>, N | PreloadPath];
        (account_key, N) -> [<<"pubkey">>, N | PreloadPath]
    end).

%% -------------------------------------------------------------------------------------------
%% The plugin's page: a form has no list of different things, so `internal_authn' is the order of
%% the methods, and what they need stands beside it

-spec page_schema() -> nats_gateway_config:schema().
page_schema() ->
    #{
        internal_authn => {{list, {one_of, [token, nkey, jwt]}}, []},
        token => {shown_secret, undefined},
        nkeys => {{list, user_key}, []},
        trusted_operators => {{list, string}, []},
        resolver_preload => {{list, string}, []}
    }.

-spec page_keys() -> [atom()].
page_keys() -> maps:keys(page_schema()).

-spec of_page(Settings :: map()) -> {ok, nats_gateway_login:login()} | {error, Text :: binary()}.
of_page(Settings = #{internal_authn := Types}) ->
    nats_gateway_config:valid(fun() ->
        ok = distinct(Types, <<"internal_authn">>),
        lists:foreach(
            fun({Key, Type}) -> used(Key, Type, lists:member(Type, Types), Settings) end,
            [{token, token}, {nkeys, nkey}, {trusted_operators, jwt}, {resolver_preload, jwt}]
        ),
        new(#{methods => [page_method(Type, Settings) || Type <- Types]})
    end).

used(Key, Type, IsUsed, Settings) ->
    #{Key := {_, Unset}} = page_schema(),
    case maps:get(Key, Settings) of
        Unset when IsUsed, Key =/= resolver_preload ->
            invalid([atom_to_binary(Key)], <<"must not be empty">>);
        Value when Value =/= Unset, not IsUsed ->
            invalid([atom_to_binary(Key)], [
                <<"is not used without ">>, atom_to_binary(Type), <<" in internal_authn">>
            ]);
        _ ->
            ok
    end.

page_method(token, #{token := Token}) ->
    {token, Token};
page_method(nkey, #{nkeys := Keys}) ->
    {nkey, Keys};
page_method(jwt, #{trusted_operators := Operators, resolver_preload := Jwts}) ->
    jwt(Operators, [{undefined, Jwt} || Jwt <- Jwts], fun
        (operator, N) -> [N, <<"trusted_operators">>];
        (_, N) -> [N, <<"resolver_preload">>]
    end).

%% -------------------------------------------------------------------------------------------

jwt(Operators, Accounts, PathOf) ->
    case nats_gateway_jwt:trust(Operators, Accounts) of
        {ok, Trust} -> {jwt, Trust};
        {error, {What, N}, Problem} -> invalid(PathOf(What, N), Problem)
    end.

new(Spec) ->
    case nats_gateway_login:new(Spec) of
        {ok, Login} -> Login;
        {error, no_such_user} -> invalid([<<"no_auth_user">>], <<"must be one of users">>)
    end.

not_empty([], Path) -> invalid(Path, <<"must not be empty">>);
not_empty(_, _) -> ok.

distinct(Names, Path) ->
    case length(lists:usort(Names)) =:= length(Names) of
        true -> ok;
        false -> invalid([Path], <<"must be different from each other">>)
    end.

numbered(List) -> lists:zip(lists:seq(1, length(List)), List).
