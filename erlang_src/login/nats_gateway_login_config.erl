%% Reads the settings of `nats_gateway_login' from the standalone gateway's file, from EMQX's
%% settings of the gateway, and from the plugin's page; and those of `nats_gateway_system_access'.
-module(nats_gateway_login_config).

-export([file_schema/0]).
-export([file_keys/0]).
-export([of_file/2]).
-export([of_gateway/1]).
-export([page_schema/0]).
-export([page_keys/0]).
-export([of_page/1]).
-export([system_schema/0]).
-export([check_system/3]).
-export([system_page_schema/0]).
-export([system_of_page/1]).

-import(nats_gateway_schema, [invalid/2, numbered/1]).

%% The error text for a page that shows its settings to others.
-define(SHOWN, <<
    "must be a bcrypt hash, or file:// and the path of a file with the secret: "
    "EMQX shows these settings to all who may read them"
>>).

%% -------------------------------------------------------------------------------------------
%% The file has EMQX's methods under the same names, and what nats-server has besides

-spec file_schema() -> nats_gateway_schema:schema().
file_schema() ->
    (gateway_schema())#{
        users => {{list, {table, user_schema()}}, []},
        no_auth_user => {string, undefined},
        auth_token => {fun secret/2, undefined}
    }.

%% These keys are not kept: the login that they make is.
-spec file_keys() -> [atom()].
file_keys() -> maps:keys(file_schema()).

user_schema() ->
    #{
        user => {string, undefined},
        password => {fun secret/2, undefined},
        nkey => {fun user_key/2, undefined},
        permissions =>
            {
                {table, #{
                    publish => {fun(Value, Path) -> subjects(no_queues, Value, Path) end, #{allow => all, deny => []}},
                    subscribe => {fun(Value, Path) -> subjects(queues, Value, Path) end, #{allow => all, deny => []}},
                    allow_responses => {fun responses/2, undefined}
                }},
                #{}
            }
    }.

%% The methods come in the order of nats-server: JWT and NKeys, users, token. To be called inside of
%% `nats_gateway_schema:valid/1'.
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
        %% without one nobody can log in, but the operator may not have any user yet
        resolver_preload => {{list, {table, Preload}}, []}
    },
    #{
        internal_authn =>
            {
                {list,
                    {by_type, #{
                        token => #{token => {fun secret/2, required}},
                        nkey => #{nkeys => {{list, fun user_key/2}, required}},
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
    case nats_gateway_schema:check(gateway_schema(), Tables) of
        {ok, Settings} ->
            nats_gateway_schema:valid(fun() -> new(#{methods => methods(Settings)}) end);
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
%% The plugin's page. A form cannot have a list of different things. So `internal_authn' only names
%% the methods in their order, and their settings are separate fields

-spec page_schema() -> nats_gateway_schema:schema().
page_schema() ->
    #{
        internal_authn => {entries({one_of, [token, nkey, jwt]}), []},
        token => {fun shown_secret/2, undefined},
        nkeys => {entries(fun user_key/2), []},
        trusted_operators => {entries(string), []},
        resolver_preload => {entries(string), []}
    }.

%% The dashboard's form splits one field at its commas: it has an empty text where somebody cleared
%% the field, and after a comma at the end.
entries(Kind) ->
    fun(Values, Path) -> nats_gateway_schema:value({list, Kind}, not_blank(Values), Path) end.

not_blank(Values) when is_list(Values) -> [Value || Value <- Values, Value =/= <<>>];
not_blank(Other) -> Other.

-spec page_keys() -> [atom()].
page_keys() -> maps:keys(page_schema()).

-spec of_page(Settings :: map()) -> {ok, nats_gateway_login:login()} | {error, Text :: binary()}.
of_page(Settings = #{internal_authn := Types}) ->
    nats_gateway_schema:valid(fun() ->
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
%% Who may ask for what a system account may

-spec system_schema() -> nats_gateway_schema:schema().
system_schema() ->
    #{
        users => {{list, fun system_user/2}, []},
        nkeys => {{list, fun user_key/2}, []},
        accounts => {{list, fun account_key/2}, []}
    }.

system_user(Value, _) when is_binary(Value), Value =/= <<>> -> Value;
system_user(_, Path) -> invalid(Path, <<"must be the name of a user">>).

%% A name that nobody can prove is a mistake, of which the operator would learn in an emergency. To be
%% called inside of `nats_gateway_schema:valid/1'.
-spec check_system(nats_gateway_system_access:access(), Users, BrokerAuthenticates) -> ok when
    Users :: [map()], BrokerAuthenticates :: boolean().
check_system(_, _, true) ->
    ok;
check_system(#{users := Named}, Users, false) ->
    Known = [Name || #{user := Name} <- Users],
    lists:foreach(
        fun({N, Name}) ->
            lists:member(Name, Known) orelse
                invalid([N, <<"users">>, <<"system">>], [
                    <<"must be one of users, or upstream.authentication must be true: ">>,
                    <<"nobody checks the password of this name">>
                ])
        end,
        numbered(Named)
    ).

-spec system_page_schema() -> nats_gateway_schema:schema().
system_page_schema() ->
    #{
        system_users => {entries(fun system_user/2), []},
        system_nkeys => {entries(fun user_key/2), []},
        system_accounts => {entries(fun account_key/2), []}
    }.

-spec system_of_page(Settings :: map()) -> nats_gateway_system_access:access().
system_of_page(#{system_users := Users, system_nkeys := NKeys, system_accounts := Accounts}) ->
    #{users => Users, nkeys => NKeys, accounts => Accounts}.

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

%% -------------------------------------------------------------------------------------------
%% Kinds of values

%% A password or token, its bcrypt hash, or a file that has one of them.
secret(Value, Path) when is_binary(Value), Value =/= <<>> ->
    case nats_gateway_login:secret(Value) of
        {ok, Secret} -> Secret;
        {error, Problem} -> invalid(Path, secret_problem(Problem))
    end;
secret(_, Path) ->
    invalid(Path, <<"must be a string that is not empty">>).

%% A secret on a page that shows it. A plain secret is refused; an empty one means that there is
%% none.
shown_secret(<<>>, _) ->
    undefined;
shown_secret(Value, Path) when is_binary(Value) ->
    case nats_gateway_login:is_plain(Value) of
        false -> secret(Value, Path);
        true -> invalid(Path, ?SHOWN)
    end;
shown_secret(_, Path) ->
    invalid(Path, <<"must be a string">>).

secret_problem(bad_hash) -> <<"begins like a bcrypt hash, but is none">>;
secret_problem(hash_too_slow) -> <<"must be a bcrypt hash of cost 16 at most">>;
secret_problem({file, relative}) -> <<"must have an absolute path behind file://">>;
secret_problem({file, empty}) -> <<"is empty in its file">>;
secret_problem({file, Reason}) -> [<<"cannot be read from its file: ">>, file:format_error(Reason)].

%% The public NKey of a user.
user_key(Value, Path) -> public_key(user, Value, Path, <<"must be the public NKey of a user (U...)">>).

account_key(Value, Path) -> public_key(account, Value, Path, <<"must be the public key of an account (A...)">>).

public_key(Role, Value, Path, Problem) ->
    case is_binary(Value) andalso nats_gateway_jwt:key(Role, Value) of
        {ok, Key} -> Key;
        _ -> invalid(Path, Problem)
    end.

%% A subject, a list of subjects, or a table of `allow' and `deny'.
subjects(Queues, Value, Path) when is_map(Value) ->
    Schema = #{allow => {{list, string}, all}, deny => {{list, string}, []}},
    Subjects = #{allow := Allow, deny := Deny} = nats_gateway_schema:table(Schema, Value, Path),
    _ = Allow =:= all orelse [subject(Queues, E, [N, <<"allow">> | Path]) || {N, E} <- numbered(Allow)],
    _ = [subject(Queues, Entry, [N, <<"deny">> | Path]) || {N, Entry} <- numbered(Deny)],
    _ = [
        invalid([<<"allow">> | Path], <<"must not be empty: leave it out, or deny \">\"">>)
     || Allow =:= []
    ],
    Subjects;
subjects(Queues, Value, Path) when is_binary(Value) ->
    subjects(Queues, [Value], Path);
subjects(Queues, Value, Path) when is_list(Value) ->
    subjects(Queues, #{<<"allow">> => Value}, Path);
subjects(_, _, Path) ->
    invalid(Path, <<"must be a subject, a list of subjects, or a table with allow and deny">>).

%% A subject, or a subject and a queue group with a blank between them.
subject(queues, Entry, Path) ->
    case binary:split(Entry, <<" ">>, [global]) of
        [Subject, Queue] ->
            subject(no_queues, Subject, Path),
            subject(no_queues, Queue, Path);
        _ ->
            subject(no_queues, Entry, Path)
    end;
subject(no_queues, Subject, Path) ->
    HasBlank = binary:match(Subject, [<<" ">>, <<"\t">>, <<"\r">>, <<"\n">>]) =/= nomatch,
    case HasBlank orelse nats_gateway_nif:filter(Subject, <<>>) =:= invalid of
        false -> ok;
        true -> invalid(Path, <<"must be a valid subject">>)
    end.

%% The answers that are allowed: true, false, or a table.
responses(true, Path) ->
    responses(#{}, Path);
responses(false, _) ->
    undefined;
responses(Value, Path) when is_map(Value) ->
    Schema = #{max => {{limit, 1 bsl 30}, 1}, expires => {{duration, 0}, 120000}},
    nats_gateway_schema:table(Schema, Value, Path);
responses(_, Path) ->
    invalid(Path, <<"must be true, false, or a table with max and expires">>).
